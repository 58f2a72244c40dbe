// Import of what lies in `incoming/` on the volume: chosen from a list, or by its path.

import { byId, bytes, element, errorNotice, fill, json, textsOf } from "./page.js";
import { sentence } from "./sentences.js";
import { modelName } from "./models_files.js";
import { runJob, showPlan } from "./models_job.js";

const texts = textsOf("models-texts");
let isProposed = true;

const form = () => byId("volume");
const sourceOf = (path) => (/\.zip$/i.test(path) ? { zip: path } : { path });

function proposeName() {
  const { path, target } = form().elements;
  const last = path.value.replace(/\/+$/, "").split("/").pop();
  if (isProposed) target.value = last && path.value.includes("/") ? modelName(last) : "";
}

function formRequest() {
  const { path, target } = Object.fromEntries(new FormData(form()));
  return { kind: "import", source: sourceOf(path), target };
}

/** Shows what the import would take, once the form is complete. */
function check() {
  if (form().checkValidity()) showPlan(byId("volume-plan"), formRequest());
  else byId("volume-plan").replaceChildren();
}

function choose(path) {
  form().elements.path.value = path;
  isProposed = true;
  proposeName();
  form().elements.target.focus();
  check();
}

function row(entry) {
  const kind = entry.problem ? texts.cannotImport : texts.kinds[entry.looks_like];
  const name = entry.path.slice("incoming/".length);
  const label = [element("span", { class: "row" }, element("strong", { class: "grow wrap" }, name), element("span", { class: "size" }, bytes(entry.size_bytes))),
    element("span", { class: "row soft" }, texts[entry.kind], element("span", { class: "badge kind", "data-model": entry.problem ? "unknown" : entry.looks_like }, kind))];
  if (entry.problem) return element("li", { class: "result refused" }, label, element("p", { class: "soft" }, sentence(entry.problem)));
  return element("li", {}, element("button", { type: "button", class: "result", onclick: () => choose(entry.path) }, label));
}

/** Lists what lies in `incoming/`. */
export async function listIncoming() {
  try {
    const { entries, truncated } = await json("/api/incoming");
    byId("incoming").replaceChildren(
      entries.length ? element("ul", { class: "plain results" }, entries.map(row)) : element("p", { class: "soft" }, texts.incomingEmpty),
      ...(truncated ? [element("p", { class: "soft" }, texts.incomingCut)] : []));
  } catch (error) {
    byId("incoming").replaceChildren(errorNotice(error));
  }
}

/** Sets up the list and the form. */
export function setUpVolume() {
  byId("volume-refresh").addEventListener("click", listIncoming);
  form().elements.target.addEventListener("input", () => { isProposed = false; });
  form().elements.path.addEventListener("input", proposeName);
  form().addEventListener("change", check);
  form().addEventListener("submit", async (event) => {
    event.preventDefault();
    const body = formRequest();
    const { target } = body;
    const slot = element("div");
    byId("volume-jobs").prepend(slot);
    const ended = await runJob(slot, body, target);
    if (ended?.status !== "succeeded") return;
    slot.replaceChildren(element("p", {}, element("a", { href: `/models/${target}` }, fill(texts.open, { name: target }))));
    form().reset();
    byId("volume-plan").replaceChildren();
    isProposed = true;
  });
}
