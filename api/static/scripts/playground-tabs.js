// The ways to try a model as tabs; the address keeps the chosen one.

import { byId } from "./page.js";

/** Sets up the tabs and shows the one in the address, otherwise the first. */
export function setUpTabs() {
  const tabs = [...document.querySelectorAll('[role="tab"]')];

  function select(tab) {
    for (const other of tabs) {
      const isSelected = other === tab;
      other.setAttribute("aria-selected", String(isSelected));
      other.tabIndex = isSelected ? 0 : -1;
      byId(other.getAttribute("aria-controls")).hidden = !isSelected;
    }
    history.replaceState(null, "", `#${tab.id.replace("tab-", "")}`);
  }

  for (const tab of tabs) {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", ({ key }) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[key];
      if (!by) return;
      const next = tabs[(tabs.indexOf(tab) + by + tabs.length) % tabs.length];
      select(next);
      next.focus();
    });
  }
  select(tabs.find(({ id }) => id === `tab-${location.hash.slice(1)}`) ?? tabs[0]);
}
