// The board of jobs: one event stream; a change of status renders that row again, progress moves its bar.

import { followAll } from "./events.js";
import { byId, fill, localizeTimes } from "./page.js";
import { runActions, showProgress, texts } from "./job_progress.js";

const PAGE_SIZE = 50;
const FLUSH_MS = 400;
const MOST_NOTED = 500; // changes that are kept while the page is hidden
const RELOAD_ROWS = 3; // a board with fewer rows than this is rendered again when a job is deleted

const changed = new Set();
let isFlushing = false;
let timer = null;

const rowOf = (id) => byId(`job-${id}`);
const rows = () => [...document.querySelectorAll("#rows > .job")];
const refreshBoard = () => htmx.ajax("GET", location.pathname + location.search, { target: "#board", swap: "outerMorph", push: "false" });

function schedule() {
  timer ??= setTimeout(() => {
    timer = null;
    flush();
  }, FLUSH_MS);
}

/** Renders the rows that have changed again: those on the page, and the newest of the others. */
async function flush() {
  if (isFlushing || document.hidden) return;
  isFlushing = true;
  try {
    const ids = [...changed];
    changed.clear();
    const shown = ids.filter(rowOf);
    const fresh = byId("board").hasAttribute("data-first") ? ids.filter((id) => !rowOf(id)).slice(-PAGE_SIZE) : [];
    if (shown.length + fresh.length) await update([...shown, ...fresh]);
  } finally {
    isFlushing = false;
    if (changed.size) schedule();
  }
}

async function update(ids) {
  const { kind, status, model } = byId("board").dataset;
  const query = new URLSearchParams({ kind, status, model });
  ids.forEach((id) => query.append("id", id));
  const response = await fetch(`/jobs/rows?${query}`, { headers: { "HX-Request": "true" } });
  if (!response.ok) return;
  const parsed = new DOMParser().parseFromString(await response.text(), "text/html");
  const found = new Map([...parsed.querySelectorAll(".job")].map((row) => [row.dataset.id, document.adoptNode(row)]));
  for (const id of ids) {
    if (!found.has(id)) rowOf(id)?.remove();
    else if (rowOf(id)) replace(rowOf(id), found.get(id));
    else if (found.get(id).hasAttribute("data-selected")) await insert(found.get(id));
  }
}

function replace(row, next) {
  const focused = row.contains(document.activeElement) ? document.activeElement.dataset.action ?? "" : null;
  row.replaceWith(next);
  localizeTimes(next);
  if (focused === null) return;
  (next.querySelector(`[data-action="${focused}"]`) ?? next.querySelector(".job-title")).focus();
}

async function insert(row) {
  const list = byId("rows");
  if (!list) {
    await refreshBoard(); // it was empty
    return;
  }
  const newest = list.firstElementChild;
  if (newest && Date.parse(newest.dataset.created) > Date.parse(row.dataset.created)) return;
  list.prepend(row);
  localizeTimes(row);
  rows().slice(PAGE_SIZE).forEach((last) => last.remove());
}

/** Places in the queue change when a job starts or ends. */
function noteQueued() {
  for (const row of rows()) if (row.dataset.status === "queued") changed.add(row.dataset.id);
}

function announce({ kind, status }) {
  byId("announcement").textContent = fill(texts.announcement, { kind: texts.kinds[kind] ?? kind, status: texts.statuses[status] });
}

followAll({
  onStatus(job) {
    changed.add(job.id);
    if (changed.size > MOST_NOTED) changed.delete(changed.values().next().value);
    if (job.status !== "queued") noteQueued();
    if (rowOf(job.id)) announce(job);
    schedule();
  },
  onProgress(id, progress) {
    const row = rowOf(id);
    if (!row || showProgress(row, progress)) return;
    changed.add(id); // its row has no bar yet
    schedule();
  },
  onConnection(isConnected) {
    const badge = byId("connection");
    if (isConnected && badge.dataset.kind === "warning") refreshBoard(); // events may have been missed
    badge.hidden = false;
    badge.dataset.kind = isConnected ? "ok" : "warning";
    badge.textContent = isConnected ? texts.live : texts.reconnecting;
  },
});

// the link that turned the page is gone with it: the keyboard goes on at the first row
let isTurning = false;
document.querySelector("main").addEventListener("click", ({ target }) => {
  isTurning = target.closest(".pager a") !== null;
});
document.addEventListener("htmx:after:swap", () => {
  if (!isTurning) return;
  isTurning = false;
  document.querySelector("#rows .job-title")?.focus();
});

// what happened while the page was hidden is read at once
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && changed.size) schedule();
});

runActions(document.querySelector("main"), (button) => button.closest(".job").dataset.id, (action, id, outcome) => {
  if (action !== "delete" || !outcome) return;
  const row = rowOf(id);
  const next = row?.nextElementSibling ?? row?.previousElementSibling;
  row?.remove();
  if (rows().length < RELOAD_ROWS) refreshBoard();
  else next?.querySelector(".job-title").focus();
});
