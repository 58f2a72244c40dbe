// A list of adapters in order, each with its scale: for the settings and for each model of a comparison.

import { offer, optionOf, searchField } from "./playground-choices.js";
import { element, fill, icon } from "./page.js";

export const iconButton = (name, label, onclick, attributes = {}) =>
  element("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...attributes }, icon(name));

/** Returns `{node, value(), set(list)}` for adapters of `choices`; `onChange` is called after each change by a person. */
export function adapterList(choices, texts, onChange = () => {}) {
  let chosen = [];
  let listed = choices.first;
  const list = element("ol", { class: "plain stack tight" });
  const add = element("select", {
    "aria-label": texts.chooseAdapter,
    onchange: () => { chosen.push({ name: add.value, scale: 1 }); changed(); },
  }, element("option", { value: "", selected: true, disabled: true }, texts.chooseAdapter));
  const find = searchField(choices, add, { label: texts.findAdapter, texts, show: (found) => { listed = found; show(); } });
  const node = element("div", { class: "stack tight" }, list, find, add);

  function changed() {
    show();
    onChange();
  }

  function move(index, by) {
    const [moved] = chosen.splice(index, 1);
    chosen.splice(index + by, 0, moved);
    changed();
    list.children[index + by].querySelector(`[data-move="${by}"]`).focus();
  }

  function item(adapter, index) {
    const { name } = adapter;
    const number = element("input", { type: "number", value: adapter.scale, min: -100, max: 100, step: "any", required: true, "aria-label": fill(texts.scale, { name }) });
    const slider = element("input", { type: "range", value: adapter.scale, min: 0, max: 2, step: 0.05, "aria-label": fill(texts.scale, { name }) });
    const set = (from, to) => () => {
      if (!from.validity.valid) return;
      to.value = from.value;
      adapter.scale = from.valueAsNumber;
      onChange();
    };
    number.addEventListener("input", set(number, slider));
    slider.addEventListener("input", set(slider, number));
    return element("li", { class: "adapter" },
      element("div", { class: "row" }, element("span", { class: "grow wrap" }, name),
        iconButton("up", fill(texts.up, { name }), () => move(index, -1), { "data-move": "-1", disabled: index === 0 }),
        iconButton("down", fill(texts.down, { name }), () => move(index, 1), { "data-move": "1", disabled: index === chosen.length - 1 }),
        iconButton("close", fill(texts.remove, { name }), () => { chosen.splice(index, 1); changed(); add.focus(); })),
      element("div", { class: "row scale" }, slider, number));
  }

  function show() {
    list.replaceChildren(...chosen.map(item));
    const left = listed.filter(({ name }) => !chosen.some((adapter) => adapter.name === name));
    add.value = "";
    offer(add, left.map(optionOf));
    add.hidden = left.length === 0 && !find;
  }

  show();
  return {
    node,
    value: () => chosen.map(({ name, scale }) => ({ name, scale })),
    set(adapters) {
      chosen = adapters.map((adapter) => ({ ...adapter }));
      show();
    },
  };
}
