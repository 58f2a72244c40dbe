// The progress of a merge's jobs, drawn as steps and followed by events. The jobs are in the address, so a reload changes nothing.

import { followJob } from "./events.js";
import { byId, bytes, confirmed, duration, element, ENDED, failureNotice, fill, json, LANGUAGE, layoutTexts, request, textsOf, toast } from "./page.js";
import { toQuery } from "./merge-request.js";
import { sentence } from "./sentences.js";

const texts = textsOf("merge-texts");
const jobs = textsOf("merge-jobs");
const generating = textsOf("merge-generating");
const VERIFYING = ["verifying tensors", "comparing logits", "measuring changes", "comparing precisions"];
const SMALLEST_SAMPLE_MS = 300;

/** The steps of a job; a stage belongs to the step that lists it, otherwise to the first. */
function stepsOf(job) {
  const { kind, request: { source, target, base, adapters, model, verify } } = job;
  if (kind === "convert") return [{ title: fill(texts.convert, { source, target }) }];
  if (kind !== "merge") return [{ title: fill(texts.other, { kind, target: target ?? model ?? base ?? "" }) }];
  const inputs = [base, ...adapters.map((one) => (typeof one === "string" || one.scale === 1 ? one.name ?? one : `${one.name} × ${one.scale.toLocaleString(LANGUAGE)}`))];
  const merging = { title: fill(texts.merge, { target }), detail: inputs.join(" + ") };
  return verify === false ? [merging] : [merging, { title: texts.verify, stages: VERIFYING }];
}

const steps = jobs.flatMap((job, index) => stepsOf(job).map((step, phase) => ({ ...step, job: index, phase })));
const phases = jobs.map(() => 0);
const samples = jobs.map(() => null);

const isOpen = (job) => !ENDED.includes(job.status);
/** Returns the first job, from the merge on, whose output has a format that an engine generates text from. */
const tried = () => jobs.slice(jobs.findIndex(({ kind }) => kind === "merge"))
  .find(({ request: { target, output_format: format } }) => target && generating.includes(format ?? "huggingface"));
const madeLast = () => jobs.findLast(({ request: { target } }) => target);

// ---- state ----

function noteProgress(index, progress) {
  jobs[index].progress = progress;
  if (!progress) return;
  const phase = steps.find((step) => step.job === index && step.stages?.includes(progress.stage))?.phase ?? 0;
  phases[index] = Math.max(phases[index], phase);
  const now = performance.now();
  if (samples[index]?.stage !== progress.stage || progress.done < samples[index].done) samples[index] = { stage: progress.stage, done: progress.done, at: now };
}

/** Returns the status of one step: what its job is, but not yet or no longer at other steps of the same job. */
function statusOf({ job: index, phase }) {
  const { status } = jobs[index];
  if (status === "succeeded" || phase < phases[index]) return "succeeded";
  if (phase > phases[index]) return "waiting";
  return status;
}

// ---- drawing ----

function figuresOf(index) {
  const { progress } = jobs[index];
  if (!progress) return null;
  const { stage, done, total, unit, eta_seconds: left } = progress;
  const amount = (value) => (unit === "bytes" ? bytes(value) : `${value.toLocaleString(LANGUAGE)} ${layoutTexts.units[unit] ?? unit}`);
  const sample = samples[index];
  const seconds = sample && (performance.now() - sample.at) / 1000;
  const rate = sample && seconds * 1000 > SMALLEST_SAMPLE_MS ? (done - sample.done) / seconds : 0;
  return [
    layoutTexts.stages[stage] ?? stage, total > 0 && fill(layoutTexts.of, { done: amount(done), total: amount(total) }),
    rate > 0 && unit === "bytes" && fill(layoutTexts.perSecond, { rate: bytes(rate) }),
    left !== null && fill(layoutTexts.left, { time: duration(left) }),
  ].filter(Boolean).join(" · ");
}

function waitingText({ waiting_for: waiting, queue_position: position, warnings }) {
  if (waiting?.what === "jobs") return texts.waiting;
  const said = waiting?.message ?? warnings?.[0];
  return said ? sentence(said) : position ? fill(texts.position, { n: position }) : "";
}

function bodyOf(step, status) {
  const job = jobs[step.job];
  const isLast = steps.filter((other) => other.job === step.job).at(-1) === step;
  const took = status === "succeeded" && isLast && job.started_at && job.finished_at
    ? fill(texts.took, { time: duration((new Date(job.finished_at) - new Date(job.started_at)) / 1000) }) : null;
  const error = status === "failed" && job.error ? failureNotice(job.error) : null;
  return [
    step.detail ? element("span", { class: "soft wrap" }, step.detail) : null,
    status === "running" ? element("progress", { max: 1, value: job.progress?.fraction ?? null, "aria-label": step.title }) : null,
    status === "running" ? element("span", { class: "soft merge-figures" }, figuresOf(step.job)) : null,
    status === "queued" ? element("span", { class: "soft" }, waitingText(job)) : null,
    took ? element("span", { class: "soft merge-figures" }, took) : null, error,
    error && job.error.order?.length
      ? element("div", {}, element("a", { class: "button", href: changeAddress(job.error.order) }, fill(texts.useOrder, { names: job.error.order.join(", ") }))) : null,
  ];
}

function draw(step, number) {
  const job = jobs[step.job];
  const status = statusOf(step);
  const isSkipped = status === "waiting" && !isOpen(job);
  const shown = status === "waiting" ? (isSkipped ? texts.skipped : null) : layoutTexts.status[status];
  return element("li", { "data-status": status },
    element("span", { class: "merge-dot", "aria-hidden": "true" }, { succeeded: "✓", failed: "!", canceled: "×" }[status] ?? String(number)),
    element("div", { class: "merge-step" },
      element("div", { class: "row" }, element("h2", { class: "wrap" }, step.title),
        element("span", { class: "row" }, shown && element("span", { class: "badge", "data-status": status }, shown),
          step.phase === 0 && element("a", { class: "small", href: `/jobs/${job.id}` }, texts.job))),
      bodyOf(step, status)));
}

function drawTry(number) {
  const isDone = jobs.every(({ status }) => status === "succeeded");
  const job = tried();
  const last = madeLast()?.request.target;
  const model = job?.request.target ?? last;
  const links = [
    job && element("a", { class: "button", href: `/playground?model=${encodeURIComponent(model)}` }, texts.tryNow),
    job && element("a", { class: "button quiet", href: `/playground?model=${encodeURIComponent(model)}#compare` }, texts.compare),
    element("a", { class: "button quiet", href: `/models/${encodeURIComponent(last)}` }, texts.openModel),
    element("a", { class: "button quiet", href: `/api/models/${encodeURIComponent(last)}/archive`, download: "" }, texts.download),
  ];
  return element("li", { "data-status": isDone ? "succeeded" : "waiting", id: "try" },
    element("span", { class: "merge-dot", "aria-hidden": "true" }, String(number)),
    element("div", { class: "merge-step" }, element("h2", { class: "wrap" }, fill(texts.try, { target: model })),
      isDone && !job ? element("p", { class: "soft" }, texts.notTried) : null,
      isDone ? element("div", { class: "row merge-links" }, links) : null));
}

const title = document.title;

/** Shows in the browser's tab how far the running job is, and at the end that there is nothing to wait for. */
function renderTitle() {
  const fraction = jobs.find(({ status }) => status === "running")?.progress?.fraction;
  const mark = jobs.every(({ status }) => status === "succeeded") ? "✓ " : jobs.some(({ status }) => status === "failed") ? "✗ " : "";
  document.title = (typeof fraction === "number" ? `${Math.floor(100 * fraction)} % ` : mark) + title;
}

function render() {
  renderTitle();
  const focused = document.activeElement?.closest("#steps a")?.getAttribute("href");
  byId("steps").replaceChildren(...steps.map((step, index) => draw(step, index + 1)), drawTry(steps.length + 1));
  if (focused) document.querySelector(`#steps a[href="${CSS.escape(focused)}"]`)?.focus();
  if (byId("cancel")) byId("cancel").hidden = !jobs.some(isOpen);
}

// ---- following ----

async function showResult(job) {
  const html = await (await request(`/merge/jobs/${job.id}/result`)).text();
  byId("result").replaceChildren(document.createRange().createContextualFragment(html));
}

async function follow(index) {
  const { id } = jobs[index];
  const update = (job) => {
    const before = jobs[index].status;
    jobs[index] = { ...jobs[index], ...job };
    noteProgress(index, job.progress);
    if (job.status !== before) byId("announce").textContent = fill(texts.ended, { step: steps.findLast((step) => step.job === index).title, status: layoutTexts.status[job.status] });
    render();
  };
  const ended = await followJob(id, { onStatus: update, onProgress: (progress) => { noteProgress(index, progress); render(); } });
  if (ended.kind === "merge" && ended.status === "succeeded") await showResult(ended);
}

async function cancel() {
  if (!await confirmed(texts.cancelConfirm, { confirm: texts.cancelJobs, danger: true })) return;
  // the last first: a job whose predecessor is canceled would end as failed
  for (const { id } of jobs.filter(isOpen).reverse()) await json(`/api/jobs/${id}/cancel`, { method: "POST" }).catch(toast);
}

/** The address of a new merge with the choices of this one, with the adapters in another order if one is given. */
function changeAddress(order = null) {
  const merge = jobs.find(({ kind }) => kind === "merge");
  if (!merge) return "/merge";
  const { base, adapters } = merge.request;
  const source = jobs.find(({ kind, request: { target } }) => kind === "convert" && target === base)?.request.source;
  const last = jobs.at(-1).request;
  const choices = adapters.map((one) => (typeof one === "string" ? { name: one, scale: 1 } : { scale: 1, ...one }));
  if (order) choices.sort((one, other) => order.indexOf(one.name) - order.indexOf(other.name));
  return `/merge?${toQuery({ base: source ?? base, adapters: choices, target: last.target, output_format: last.output_format ?? "huggingface", dtype: last.dtype }, false)}`;
}

byId("change").href = changeAddress();
byId("cancel")?.addEventListener("click", cancel);
jobs.forEach((job, index) => noteProgress(index, job.progress));
render();
jobs.forEach((job, index) => {
  if (isOpen(job)) follow(index).catch(() => toast(texts.lost, "error"));
  else if (job.kind === "merge" && job.status === "succeeded") showResult(job).catch(toast);
});
