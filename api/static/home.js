// The page of one Graftwerk: jobs as they run (one stream of events for all of them), models, readiness.

import { ENDED, ask, byId, element, eventsOf, keepKey } from "./page.js";
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

function subject(request) {
  switch (request.kind) {
    case "generate":
    case "embed": return request.model;
    case "verify": return [request.model, ...(request.base ? [[request.base, ...request.adapters.map(({ name }) => name)].join(" + ")] : [])].join(" = ");
    case "perplexity": return [request.model, ...request.adapters.map(({ name }) => name)].join(" + ");
    case "compare": return request.variants
      .map(({ label, model, adapters }) => label ?? [model, ...adapters.map(({ name }) => name)].join(" + ")).join(" | ");
    case "merge": return `${[request.base, ...request.adapters.map(({ name }) => name)].join(" + ")} → ${request.target}`;
    case "extend-tokenizer": return `${request.base} + ${request.addition} → ${request.target}`;
    default: {
      const source = typeof request.source === "string" ? request.source : Object.values(request.source)[0];
      return `${source} → ${request.target}`;
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

function generated(job) {
  const text = job.status === "succeeded" && job.result?.outputs?.[0]?.text;
  return text ? element("p", {}, text.length > 400 ? `${text.slice(0, 400)} …` : text) : null;
}

function verdict(job) {
  if (job.result?.passed !== false) return null;
  const first = job.result.differences?.[0]?.message ?? "";
  return element("p", { class: "error" }, `The check did not pass: ${job.result.differences?.length ?? 0} differences. ${first}`);
}

function duration(job) {
  if (!job.started_at || !job.finished_at) return null;
  return element("span", { class: "soft" }, seconds((Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1000));
}

function jobItem(job) {
  const status = job.status === "queued" && job.queue_position ? `queued, place ${job.queue_position}` : job.status;
  const cancel = ENDED.includes(job.status)
    ? null : element("button", { class: "quiet", onclick: () => cancelJob(job.id) }, "cancel");
  const error = job.error && element("p", { class: "error" }, `${job.error.message} ${job.error.hint}`);
  return element("li", { id: `job-${job.id}` },
    element("div", { class: "row" },
      element("span", { class: "grow" }, `${job.kind} ${subject(job.request)}`),
      duration(job), element("span", { class: "badge", "data-status": job.status }, status), cancel),
    element("a", { class: "soft", href: `/api/jobs/${job.id}` }, job.id),
    ...progressOf(job), error, verdict(job), generated(job));
}

function showJobs() {
  const newest = [...jobs.values()].sort((a, b) => b.created_at.localeCompare(a.created_at)).slice(0, JOBS_SHOWN);
  byId("jobs").replaceChildren(...newest.map(jobItem));
  byId("no-jobs").hidden = newest.length > 0;
}

/** Draws one job again in its place; a new one draws the list. */
function showJob(job) {
  const shown = byId(`job-${job.id}`);
  if (shown) shown.replaceWith(jobItem(job));
  else showJobs();
}

async function cancelJob(id) {
  try {
    await ask(`/api/jobs/${id}/cancel`, { method: "POST" });
  } catch (error) {
    byId("readiness").textContent = error.message;
  }
}

// ---- events ----

function onEvent(name, data) {
  if (name === "status") {
    jobs.set(data.id, data);
    if (data.status === "succeeded") refreshModels();
  } else if (name === "progress" && jobs.has(data.id)) {
    jobs.get(data.id).progress = data.progress;
  } else return;
  showJob(jobs.get(data.id));
}

/** Reads the stream until it breaks. */
async function readEvents() {
  const response = await ask("/api/events");
  byId("live").textContent = "live";
  byId("live").dataset.state = "on";
  const listed = await (await ask(`/api/jobs?limit=${JOBS_SHOWN}`)).json();
  for (const job of listed.jobs) jobs.set(job.id, job);
  showJobs();
  for await (const { name, data } of eventsOf(response)) onEvent(name, data);
}

async function followForEver() {
  for (;;) {
    // what the next stream missed, the list that follows it shows
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
    const { models } = await (await ask("/api/models")).json();
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
    const { status, checks } = await (await fetch("/readyz")).json();
    const wrong = Object.entries(checks).filter(([, outcome]) => outcome !== "ok");
    shown.dataset.state = status;
    shown.textContent = status === "ok"
      ? "Ready: Redis, the model volume and the workers answer."
      : `Not ready. ${wrong.map(([part, outcome]) => `${part}: ${outcome}`).join("; ")}`;
  } catch {
    shown.dataset.state = "unavailable";
    shown.textContent = "The API does not answer.";
  }
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(byId("key").value);
  byId("key").value = "";
  location.reload();
});

followForEver();
refreshModels();
refreshReadiness();
setInterval(refreshModels, 2 * REFRESH_MS);
setInterval(refreshReadiness, REFRESH_MS);
