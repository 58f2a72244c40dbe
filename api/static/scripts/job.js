// The page of one job: its progress, and its log while it runs.

import { followJob } from "./events.js";
import { ENDED, byId, element, fill, request } from "./page.js";
import { prepareSnippets, runActions, showProgress, texts } from "./job_progress.js";

const LOG_MS = 2000;

const article = byId("job");
const id = article.dataset.id;
let status = byId("job-head").dataset.status;

let isRefreshing = false;
let isStale = false;

/** Renders the content again; a change during that renders it once more, because htmx drops a second request. */
async function refresh() {
  isStale = true;
  if (isRefreshing) return;
  isRefreshing = true;
  try {
    while (isStale) {
      isStale = false;
      await htmx.ajax("GET", location.pathname, { target: "#job", swap: "innerMorph" });
      prepareSnippets(article);
    }
  } finally {
    isRefreshing = false;
  }
}

async function refreshLog() {
  if (document.hidden) return;
  const log = byId("log");
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  log.textContent = await (await request(`/api/jobs/${id}/log`)).text() || texts.noLog;
  if (isAtEnd) log.scrollTop = log.scrollHeight;
}

const written = []; // texts of the outputs so far, by their index

/** Shows the text that a generate job has written; a piece with offset 0 starts its output again. */
function showText({ index, offset, text }) {
  written[index] = (written[index] ?? "").slice(0, offset) + text;
  const place = byId("so-far");
  if (!place) return;
  place.hidden = false;
  const list = place.querySelector("ol");
  while (list.children.length < written.length) list.append(element("li", {}, element("p", { class: "text" })));
  list.children[index].firstElementChild.textContent = written[index];
}

async function follow() {
  const tail = setInterval(() => refreshLog().catch(() => {}), LOG_MS);
  try {
    await followJob(id, {
      onToken: showText,
      onProgress(progress) {
        if (!showProgress(byId("job-state"), progress)) refresh();
      },
      onStatus(job) {
        if (job.status === status) return;
        status = job.status;
        byId("announcement").textContent = fill(texts.announcement, { kind: texts.kinds[job.kind] ?? job.kind, status: texts.statuses[status] });
        refresh();
      },
    });
  } finally {
    clearInterval(tail);
  }
}

runActions(article, () => id, (action, _, outcome) => {
  if (action === "delete" && outcome) location.assign("/jobs");
  else if (action !== "copy" && action !== "retry") refresh();
});
prepareSnippets(article);
byId("log").scrollTop = byId("log").scrollHeight;
if (!ENDED.includes(status)) follow();
