// Calls of tools in a reply, and the fields in which a person gives their results.

import { iconButton } from "./playground-adapters.js";
import { formatted } from "./playground-json.js";
import { copy, element, fill } from "./page.js";

/** Returns the calls of a reply, one block each: name, then arguments. */
export function callsView(calls, texts) {
  return element("div", { class: "stack tight calls" }, calls.filter(Boolean).map(({ name, arguments: given }) => element(
    "section", { class: "call", "aria-label": fill(texts.callOf, { name }) },
    element("div", { class: "row" }, element("span", { class: "soft" }, texts.call), element("code", { class: "grow wrap" }, name),
      iconButton("copy", fill(texts.copyArguments, { name }), () => copy(given))),
    element("pre", { tabindex: 0, role: "region", "aria-label": fill(texts.argumentsOf, { name }) }, element("code", {}, formatted(given))))));
}

/** Returns the results of calls, as a person gave them. */
export const resultsView = (results) => element("div", { class: "stack tight" }, results.map(({ name, text }) => element(
  "section", { "aria-label": name }, element("code", { class: "wrap" }, name), element("p", { class: "words", lang: "" }, text))));

/**
 * Returns a form with a field for the result of each call. `onSend(results)` gets them as `{id, name, text}`; `onCancel` adds a button
 * that leaves the form.
 */
export function resultsForm(calls, texts, onSend, onCancel = null) {
  const fields = calls.map(({ name, text = "" }) => {
    const area = element("textarea", { rows: 2, required: true, placeholder: texts.resultHint });
    area.value = text;
    return { area, node: element("label", { class: "field" }, element("span", { class: "label" }, fill(texts.resultOf, { name })), area) };
  });
  const form = element("form", {
    class: "stack tight results",
    onsubmit: (event) => {
      event.preventDefault();
      onSend(calls.map(({ id, name }, index) => ({ id, name, text: fields[index].area.value })));
    },
    onkeydown: (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
      event.preventDefault();
      form.requestSubmit();
    },
  }, fields.map(({ node }) => node), element("div", { class: "row" }, element("button", {}, texts.sendResults),
    onCancel && element("button", { type: "button", class: "quiet", onclick: onCancel }, texts.cancel)));
  return form;
}
