// The table of GGUF types: what each means and how large it makes the model; a click chooses it.

import { bytes, element, LANGUAGE } from "./page.js";

/** Fills the table from the options of a selection; `parameters` is the base's number of them, if it is known. */
export function showTypes(table, select, parameters) {
  const types = [...select.querySelectorAll('option[data-format="gguf"]')];
  const row = ({ value, dataset: { bits, help } }) => element("tr", { "data-chosen": value === select.value },
    element("td", {}, element("button", { type: "button", class: "quiet small", "aria-pressed": String(value === select.value), onclick: () => choose(select, value) }, value)),
    element("td", { class: "number" }, Number(bits).toLocaleString(LANGUAGE, { minimumFractionDigits: 2 })),
    element("td", { class: "number" }, parameters ? bytes(parameters * bits / 8) : "–"),
    element("td", {}, help));
  const focused = document.activeElement?.closest("#types button")?.textContent;
  table.tBodies[0].replaceChildren(...types.map(row));
  if (focused) [...table.querySelectorAll("button")].find(({ textContent }) => textContent === focused)?.focus();
}

function choose(select, value) {
  select.value = value;
  select.dispatchEvent(new Event("input", { bubbles: true }));
}
