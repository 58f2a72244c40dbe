// Ways to bring a model: tabs, uploads, a path on the volume, the Hub.

import { byId, element, fill, textsOf } from "./page.js";
import { modelName } from "./models_files.js";
import { setUpHub } from "./models_hub.js";
import { runJob } from "./models_job.js";
import { setUp } from "./models_uploads.js";

const texts = textsOf("models-texts");

// ---- tabs ----

const tabs = [...document.querySelectorAll('#bring [role="tab"]')];

function select(tab, isFocused = false) {
  for (const other of tabs) {
    const isSelected = other === tab;
    other.setAttribute("aria-selected", isSelected);
    other.tabIndex = isSelected ? 0 : -1;
    byId(other.getAttribute("aria-controls")).hidden = !isSelected;
  }
  if (isFocused) tab.focus();
}

const STEPS = { ArrowRight: 1, ArrowLeft: -1 };

for (const [index, tab] of tabs.entries()) {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", ({ key }) => {
    if (key in STEPS) select(tabs[(index + STEPS[key] + tabs.length) % tabs.length], true);
  });
}

setUp(() => select(tabs[0]));
if (byId("hub-search")) setUpHub();

// ---- volume ----

const form = byId("volume");
let isProposed = true;

form.elements.target.addEventListener("input", () => { isProposed = false; });
form.elements.path.addEventListener("input", ({ target }) => {
  const last = target.value.replace(/\/+$/, "").split("/").pop();
  if (isProposed) form.elements.target.value = last && target.value.includes("/") ? modelName(last) : "";
});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { path, target } = Object.fromEntries(new FormData(form));
  const source = /\.zip$/i.test(path) ? { zip: path } : { path };
  const slot = element("div");
  byId("volume-jobs").prepend(slot);
  const ended = await runJob(slot, { kind: "import", source, target }, target);
  if (ended?.status !== "succeeded") return;
  slot.replaceChildren(element("p", {}, element("a", { href: `/models/${target}` }, fill(texts.open, { name: target }))));
  form.reset();
  isProposed = true;
});
