// A job as one line: status, progress with rate and time left, a link to its page, and its end.

import { followJob } from "./events.js";
import { bytes, count, duration, element, errorNotice, failureNotice, fill, json, layoutTexts, textsOf } from "./page.js";
import { sentence } from "./sentences.js";

const texts = textsOf("models-texts");
const rates = new WeakMap();

const amount = (value, unit) => (unit === "bytes" ? bytes(value) : count(value));

/** Returns the units a second of a line's job: a moving average, so that it does not jump. */
function rateOf(line, { stage, done }) {
  const now = performance.now();
  const last = rates.get(line);
  if (!last || last.stage !== stage || done < last.done) {
    rates.set(line, { stage, done, at: now, rate: null });
    return null;
  }
  const seconds = (now - last.at) / 1000;
  if (seconds < 0.25) return last.rate;
  const rate = (done - last.done) / seconds;
  const smooth = last.rate === null ? rate : 0.7 * last.rate + 0.3 * rate;
  rates.set(line, { stage, done, at: now, rate: smooth });
  return smooth;
}

/** Shows the progress of a job in its line. */
export function showProgress(line, progress) {
  const bar = line.querySelector("progress");
  if (progress.fraction === null) bar.removeAttribute("value");
  else bar.value = progress.fraction;
  const { stage, done, total, unit, eta_seconds: left } = progress;
  const rate = rateOf(line, progress);
  line.querySelector('[data-part="detail"]').textContent = [
    layoutTexts.stages[stage] ?? stage,
    total ? fill(layoutTexts.of, { done: amount(done, unit), total: amount(total, unit) }) : null,
    rate ? fill(layoutTexts.perSecond, { rate: amount(rate, unit) }) : null,
    left === null ? null : fill(layoutTexts.left, { time: duration(left) }),
  ].filter(Boolean).join(" · ");
}

/** Shows the status of a job in its line. */
export function showStatus(line, job) {
  const badge = line.querySelector('[data-part="status"]');
  badge.dataset.status = job.status;
  badge.textContent = layoutTexts.status[job.status];
  if (job.progress) showProgress(line, job.progress);
  const waiting = job.waiting_for?.message ?? job.warnings?.[0];
  if (job.status === "queued" && waiting) line.querySelector('[data-part="detail"]').replaceChildren(sentence(waiting));
}

/** Returns the line of a new job. */
export function jobLine(job, title) {
  const line = element("div", { class: "job", "data-job": job.id },
    element("div", { class: "row" }, element("strong", { class: "wrap grow" }, title),
      element("span", { class: "badge", "data-part": "status" }),
      element("a", { href: `/jobs/${job.id}` }, texts.details)),
    element("progress", { max: "1", value: "0", "aria-label": title }),
    element("p", { class: "soft", "data-part": "detail" }));
  showStatus(line, job);
  return line;
}

/** Asks for the plan of a job and shows its sizes and warnings, or the refusal, in a container. */
export async function showPlan(container, body) {
  try {
    const plan = await json("/api/jobs?dry_run=true", { body });
    const sizes = fill(texts.plan, {
      output: bytes(plan.output_bytes), memory: bytes(plan.peak_memory_bytes), disk: bytes(plan.disk_needed_bytes), free: bytes(plan.disk_free_bytes),
    });
    container.replaceChildren(element("p", {}, sizes), ...plan.warnings.map((text) => element("p", {}, sentence(text))));
  } catch (error) {
    container.replaceChildren(errorNotice(error));
  }
}

/** Submits a job, shows its line in a container until it has ended, and returns the ended job; null if it was refused. */
export async function runJob(container, body, title) {
  let job;
  try {
    job = await json("/api/jobs", { body });
  } catch (error) {
    container.replaceChildren(errorNotice(error));
    return null;
  }
  const line = jobLine(job, title);
  container.replaceChildren(line);
  const cancel = element("button", { type: "button", class: "quiet small", onclick: () => json(`/api/jobs/${job.id}/cancel`, { method: "POST" }).catch((error) => line.append(errorNotice(error))) }, texts.cancel);
  line.querySelector(".row").append(cancel);
  const ended = await followJob(job.id, { onStatus: (found) => showStatus(line, found), onProgress: (progress) => showProgress(line, progress) });
  cancel.remove();
  if (ended.error && ended.status !== "canceled") line.append(failureNotice(ended.error));
  return ended;
}
