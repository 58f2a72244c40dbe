// The home page: jobs (one event stream for all of them), models, readiness.

import { ENDED, byId, element, eventsOf, keepKey, request } from "./page.js";
import { offerModels } from "./playground.js";

const JOBS_SHOWN = 50;
const RECONNECT_MS = 2000;
const REFRESH_MS = 15000;

const jobs = new Map();

const bytes = new Intl.NumberFormat("en", { notation: "compact", style: "unit", unit: "byte", unitDisplay: "narrow" });
const count = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });

function seconds(value) {
  if (value < 90) return `${Math.max(1, Math.round(value))} s`;
  return value < 5400 ? `${Math.round(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;
}

// ---- jobs ----

/** Describes the request of a job: models in, models out. */
function subject(details) {
  switch (details.kind) {
    case "generate":
    case "embed": return details.model;
    case "verify": return [details.model, ...(details.base ? [[details.base, ...details.adapters.map(({ name }) => name)].join(" + ")] : [])].join(" = ");
    case "perplexity": return [details.model, ...details.adapters.map(({ name }) => name)].join(" + ");
    case "compare": return details.variants
      .map(({ label, model, adapters }) => label ?? [model, ...adapters.map(({ name }) => name)].join(" + ")).join(" | ");
    case "merge": return `${[details.base, ...details.adapters.map(({ name }) => name)].join(" + ")} → ${details.target}`;
    case "extract": return `${details.model} - ${details.base} → ${details.target}`;
    case "publish-to-hub": return `${details.model} → ${details.repository}`;
    case "combine": return `${details.adapters.map(({ name }) => name).join(" + ")} → ${details.target}`;
    case "extend-tokenizer": return `${details.base} + ${details.addition} → ${details.target}`;
    default: {
      const source = typeof details.source === "string" ? details.source : Object.values(details.source)[0];
      return `${source} → ${details.target}`;
    }
  }
}

function progressOf(job) {
  if (job.status !== "running" || !job.progress) return [];
  const { stage, done, total, unit, fraction, eta_seconds: eta } = job.progress;
  const bar = element("progress", { "aria-label": stage, max: 1, ...(fraction === null ? {} : { value: fraction }) });
  const amount = unit === "bytes" ? bytes.format : (value) => `${count.format(value)} ${unit}`;
  const parts = [stage, total > 0 ? `${amount(done)} of ${amount(total)}` : done > 0 ? amount(done) : null];
  if (eta !== null) parts.push(`${seconds(eta)} left`);
  return [bar, element("p", { class: "soft" }, parts.filter(Boolean).join(" · "))];
}

function warningsOf(job) {
  return (job.warnings ?? []).map((warning) => element("p", { class: "warning" }, warning));
}

function generated(job) {
  const text = job.status === "succeeded" && job.result?.outputs?.[0]?.text;
  return text ? element("p", {}, text.length > 400 ? `${text.slice(0, 400)} …` : text) : null;
}

function verdict(job) {
  if (job.result?.passed !== false) return null;
  const first = job.result.differences?.[0]?.message ?? "";
  return element("p", { class: "error" }, `Verification failed with ${job.result.differences?.length ?? 0} differences. ${first}`);
}

function duration(job) {
  if (!job.started_at || !job.finished_at) return null;
  return element("span", { class: "soft" }, seconds((Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1000));
}

function jobItem(job) {
  const place = job.waiting_for ? `waiting for ${job.waiting_for.what}` : job.queue_position ? `position ${job.queue_position}` : "";
  const status = job.status === "queued" && place ? `queued, ${place}` : job.status;
  const cancel = ENDED.includes(job.status)
    ? null : element("button", { class: "quiet", onclick: () => cancelJob(job.id) }, "Cancel");
  const error = job.error && element("p", { class: "error" }, `${job.error.message} ${job.error.hint}`);
  return element("li", { id: `job-${job.id}` },
    element("div", { class: "row" },
      element("span", { class: "grow" }, `${job.kind} ${subject(job.request)}`),
      duration(job), element("span", { class: "badge", "data-status": job.status }, status), cancel),
    element("a", { class: "soft", href: `/api/jobs/${job.id}` }, job.id),
    ...warningsOf(job), ...progressOf(job), error, verdict(job), generated(job));
}

function showJobs() {
  const newest = [...jobs.values()].sort((a, b) => b.created_at.localeCompare(a.created_at)).slice(0, JOBS_SHOWN);
  byId("jobs").replaceChildren(...newest.map(jobItem));
  byId("no-jobs").hidden = newest.length > 0;
}

/** Redraws one job in place, or the whole list if the job is new. */
function showJob(job) {
  const shown = byId(`job-${job.id}`);
  if (shown) shown.replaceWith(jobItem(job));
  else showJobs();
}

async function cancelJob(id) {
  try {
    await request(`/api/jobs/${id}/cancel`, { method: "POST" });
  } catch (error) {
    byId("readiness").textContent = error.message;
  }
}

// ---- events ----

function onEvent(name, data) {
  if (name === "status") {
    jobs.set(data.id, data);
    if (data.status === "succeeded") refreshModels();
    if (data.status === "queued") refreshWarnings(data.id);
  } else if (name === "progress" && jobs.has(data.id)) {
    jobs.get(data.id).progress = data.progress;
  } else return;
  showJob(jobs.get(data.id));
}

/** Gets the warnings of a queued job, which events do not carry. */
async function refreshWarnings(id) {
  const job = await request(`/api/jobs/${id}`).then((response) => response.json()).catch(() => null);
  if (job?.status !== jobs.get(id)?.status) return;
  jobs.set(id, job);
  showJob(job);
}

/** Reads the stream until it breaks. */
async function readEvents() {
  const response = await request("/api/events");
  byId("live").textContent = "live";
  byId("live").dataset.state = "on";
  const listed = await (await request(`/api/jobs?limit=${JOBS_SHOWN}`)).json();
  for (const job of listed.jobs) jobs.set(job.id, job);
  showJobs();
  for await (const { name, data } of eventsOf(response)) onEvent(name, data);
}

async function followEvents() {
  for (;;) {
    // the list that is read with the next stream includes missed events
    await readEvents().catch(() => {});
    byId("live").textContent = "not connected";
    byId("live").dataset.state = "off";
    await new Promise((resume) => setTimeout(resume, RECONNECT_MS));
  }
}

// ---- models and readiness ----

function modelItem(model) {
  const facts = [model.kind, bytes.format(model.size_bytes)];
  if (model.parameters) facts.push(`${count.format(model.parameters)} parameters`);
  if (model.vocabulary_size) facts.push(`vocabulary ${model.vocabulary_size}`);
  if (model.known_as) facts.push(`known as ${model.known_as}`);
  return element("li", {},
    element("a", { href: `/api/models/${model.name}` }, model.name),
    element("p", { class: "soft" }, facts.join(" · ")),
    ...model.problems.map((problem) => element("p", { class: "error" }, problem)));
}

async function refreshModels() {
  try {
    const { models } = await (await request("/api/models")).json();
    byId("models").replaceChildren(...models.map(modelItem));
    byId("no-models").hidden = models.length > 0;
    offerModels(models);
  } catch (error) {
    byId("models").replaceChildren(element("li", { class: "error" }, error.message));
  }
}

async function refreshReadiness() {
  const shown = byId("readiness");
  try {
    const { status, checks, warnings } = await (await fetch("/readyz")).json();
    const wrong = Object.entries(checks).filter(([, outcome]) => outcome !== "ok");
    shown.dataset.state = status;
    const summary = status === "ok"
      ? "Ready: Redis, the model volume and all workers respond."
      : `Not ready. ${wrong.map(([part, outcome]) => `${part}: ${outcome}`).join(" ")}`;
    shown.textContent = [summary, ...warnings].join(" ");
  } catch {
    shown.dataset.state = "unavailable";
    shown.textContent = "The API does not respond.";
  }
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(byId("key").value);
  byId("key").value = "";
  location.reload();
});

followEvents();
refreshModels();
refreshReadiness();
setInterval(refreshModels, 2 * REFRESH_MS);
setInterval(refreshReadiness, REFRESH_MS);
