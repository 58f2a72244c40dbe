// Keeps the progress, the durations and the actions of jobs current, on the board and on the page of a job.

import { bytes, confirmed, copy, count, duration, element, fill, json, layoutTexts, request, textsOf, toast } from "./page.js";
import { snippets } from "./snippets.js";

export const texts = textsOf("jobs-texts");
const TICK_MS = 1000;

const amount = (value, unit) => (unit === "bytes" ? bytes(value) : `${count(value)} ${layoutTexts.units[unit] ?? unit}`);

/** Returns stage, amounts, rate and time left as one line: the same as the macro `progress` of templates/jobs/parts.html. */
export function progressText({ stage, done, total, unit, fraction, eta_seconds: eta }) {
  const parts = [layoutTexts.stages[stage] ?? stage];
  if (fraction !== null) parts.unshift(`${Math.round(100 * fraction)} %`);
  if (total) parts.push(fill(layoutTexts.of, { done: amount(done, unit), total: amount(total, unit) }));
  if (eta && total) parts.push(fill(layoutTexts.perSecond, { rate: amount((total - done) / eta, unit) }));
  if (eta !== null) parts.push(fill(layoutTexts.left, { time: duration(eta) }));
  return parts.join(" · ");
}

/** Shows the progress in an element with a bar and a line; returns false if there is none. */
export function showProgress(root, progress) {
  const place = root?.querySelector("[data-progress]");
  if (!place) return false;
  const bar = place.querySelector("progress");
  if (progress.fraction === null) bar.removeAttribute("value");
  else bar.value = progress.fraction;
  const line = place.querySelector("[data-progress-text]");
  if (!line) return false;
  line.textContent = progressText(progress);
  return true;
}

/** Counts the durations of what has not ended. */
setInterval(() => {
  if (document.hidden) return;
  for (const since of document.querySelectorAll("[data-since]")) {
    since.textContent = duration(Math.max(0, (Date.now() - Date.parse(since.dataset.since)) / 1000));
  }
}, TICK_MS);

const ACTIONS = {
  async cancel(id) {
    await json(`/api/jobs/${id}/cancel`, { method: "POST" });
    toast(texts.canceled);
  },
  async retry(id) {
    const job = await json(`/api/jobs/${id}/retry`, { method: "POST" });
    toast(element("p", {}, `${texts.retried} `, element("a", { href: `/jobs/${job.id}` }, texts.showRetried)), "ok");
  },
  async delete(id) {
    if (!await confirmed(texts.deleteQuestion, { confirm: texts.delete, danger: true })) return false;
    await request(`/api/jobs/${id}`, { method: "DELETE" });
    toast(texts.deleted, "ok");
    return true;
  },
  async redeliver(id, { delivery }) {
    await json(`/api/jobs/${id}/deliveries/${delivery}/redeliver`, { method: "POST" });
    toast(texts.redelivered, "ok");
  },
  async copy(id, { snippet }, button) {
    const { request: sent, needsKey } = button.parentElement.dataset;
    await copy(snippets(JSON.parse(sent), { url: location.origin, needsKey: needsKey !== undefined })[snippet]);
  },
};

/** Runs the actions of buttons in an element; `idOf(button)` is the job, `onDone(name, id, outcome)` follows a success. */
export function runActions(root, idOf, onDone = () => {}) {
  root.addEventListener("click", async ({ target }) => {
    const button = target.closest("button[data-action]");
    if (!button) return;
    const id = idOf(button);
    button.disabled = true;
    try {
      onDone(button.dataset.action, id, await ACTIONS[button.dataset.action](id, button.dataset, button));
    } catch (error) {
      toast(error);
    } finally {
      button.disabled = false;
    }
  });
}

/** Hides the snippets that the command cannot say. */
export function prepareSnippets(root) {
  const place = root.querySelector("#snippets");
  if (!place) return;
  const found = snippets(JSON.parse(place.dataset.request), { url: location.origin });
  for (const button of place.querySelectorAll("[data-snippet]")) button.hidden = found[button.dataset.snippet] === null;
}
