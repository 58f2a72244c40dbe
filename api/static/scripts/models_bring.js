// Ways to bring a model: tabs, uploads, a path on the volume, the Hub.

import { byId } from "./page.js";
import { setUpHub } from "./models_hub.js";
import { setUp } from "./models_uploads.js";
import { listIncoming, setUpVolume } from "./models_volume.js";

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
  if (tab.id === "tab-volume") listIncoming();
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

setUpVolume();
