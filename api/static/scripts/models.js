// The list of models: progress of the jobs that make models, and a fresh list when one of them ends.

import { followAll } from "./events.js";
import { byId, ENDED, fill, textsOf, toast } from "./page.js";
import { showProgress, showStatus } from "./models_job.js";

const texts = textsOf("models-texts");
const REFRESH_DELAY_MS = 250;
const made = new Set();
let isLost = false;
let isWanted = false;
let isLoading = false;

/** Loads the list again as it is filtered at the moment, and marks the models that were made since the page was opened. */
async function refresh() {
  isWanted = true;
  if (isLoading) return; // one list at a time, so that an older one never replaces a newer one
  isLoading = true;
  while (isWanted) {
    await new Promise((resolve) => setTimeout(resolve, REFRESH_DELAY_MS));
    isWanted = false; // what happens from now on is in the next list
    const { search } = location;
    await window.htmx.ajax("GET", location.pathname + search, { target: "#list", swap: "outerMorph" });
    if (location.search !== search) isWanted = true; // this list is of the filter before, and came after that of the new one
    for (const row of document.querySelectorAll(".model")) row.toggleAttribute("data-new", made.has(row.dataset.name));
  }
  isLoading = false;
}

const lineOf = (id) => document.querySelector(`#list [data-job="${CSS.escape(id)}"]`);

followAll({
  onStatus: (job) => {
    const target = job.request.target;
    if (!target) return;
    if (job.status === "succeeded" && !made.has(target)) {
      made.add(target);
      toast(fill(texts.made, { name: target }), "ok");
    }
    const line = lineOf(job.id);
    if (line && !ENDED.includes(job.status)) showStatus(line, job);
    else refresh();
  },
  onProgress: (id, progress) => {
    const line = lineOf(id);
    if (line) showProgress(line, progress);
  },
  onConnection: (isConnected) => {
    if (isConnected && isLost) refresh(); // events may have been missed
    isLost = !isConnected;
  },
});

if (location.hash === "#bring") byId("bring")?.scrollIntoView();
