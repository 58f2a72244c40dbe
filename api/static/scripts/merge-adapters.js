// The ordered list of adapters: by mouse and touch, by buttons, by Alt and arrow keys. Rows stay the same elements, so focus stays.

import { byId, element, fill, icon } from "./page.js";

const LARGEST_SCALE = 100;
const SLIDER = { min: 0, max: 2, step: 0.05 };

export class AdapterList {
  /** `facts` are those of the adapters by name; `onChange` is called after each change. */
  constructor(list, facts, texts, onChange) {
    this.list = list;
    this.facts = facts;
    this.texts = texts;
    this.onChange = onChange;
    this.list.addEventListener("keydown", (event) => this.#key(event));
  }

  get rows() {
    return [...this.list.children];
  }

  get names() {
    return this.rows.map((row) => row.dataset.name);
  }

  /** The adapters in order, each with its scale; NaN for one that is not a number. */
  get choices() {
    return this.rows.map((row) => ({ name: row.dataset.name, scale: row.querySelector('input[type="number"]').valueAsNumber }));
  }

  add(name, scale = 1) {
    if (this.names.includes(name)) return;
    this.list.append(this.#row(name, scale));
    this.#changed(this.texts.added, name);
  }

  /** Brings the rows into the order of these names. */
  reorder(names) {
    const position = (row) => (names.includes(row.dataset.name) ? names.indexOf(row.dataset.name) : names.length);
    this.list.append(...this.rows.sort((one, other) => position(one) - position(other)));
    this.#changed();
  }

  /** Shows under each row what its summary says against the base. */
  mark(markOf) {
    for (const row of this.rows) {
      const text = markOf(row.dataset.name);
      const mark = row.querySelector(".merge-mark");
      mark.textContent = text ?? "";
      mark.hidden = !text;
    }
  }

  #row(name, scale) {
    const { type, scalable } = this.facts[name];
    const button = (text, symbol, action) => element("button", {
      type: "button", class: "quiet icon-button", title: fill(this.texts[text], { name }), "aria-label": fill(this.texts[text], { name }), onclick: action,
    }, icon(symbol));
    const row = element("li", { "data-name": name },
      element("span", { class: "merge-grip", title: fill(this.texts.drag, { name }), onpointerdown: (event) => this.#drag(event, row) }, icon("grip")),
      element("span", { class: "merge-position", "aria-hidden": "true" }),
      element("span", { class: "merge-name" }, element("strong", { class: "wrap" }, name), element("span", { class: "merge-mark", hidden: true })),
      this.#scale(name, scale, scalable, type),
      element("span", { class: "merge-moves" },
        button("up", "up", () => this.#move(row, -1)), button("down", "down", () => this.#move(row, 1)), button("remove", "close", () => this.#remove(row))));
    return row;
  }

  #scale(name, scale, scalable, type) {
    const label = fill(this.texts.scale, { name });
    const title = scalable ? null : fill(this.texts.notScaled, { type });
    const common = { "aria-label": label, title, disabled: !scalable, value: scale };
    const slider = element("input", { type: "range", ...SLIDER, ...common });
    const number = element("input", { type: "number", min: -LARGEST_SCALE, max: LARGEST_SCALE, step: "any", ...common });
    slider.addEventListener("input", () => { number.value = slider.value; this.onChange(); });
    number.addEventListener("input", () => { slider.value = number.value; this.onChange(); });
    return element("span", { class: "merge-scale" }, element("span", { class: "soft", "aria-hidden": "true" }, this.texts.scaleLabel), slider, number);
  }

  #key(event) {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!event.altKey || !step) return;
    event.preventDefault();
    this.#move(event.target.closest("li"), step);
  }

  #move(row, step) {
    const other = step < 0 ? row.previousElementSibling : row.nextElementSibling;
    if (!other) return;
    // the other row moves: an element that is moved loses the focus
    if (step < 0) row.after(other);
    else row.before(other);
    this.#changed(this.texts.moved, row.dataset.name);
  }

  #remove(row) {
    const next = row.nextElementSibling ?? row.previousElementSibling;
    row.remove();
    const focus = next?.querySelector(".merge-moves button:last-child")
      ?? document.querySelector(`[data-add="${CSS.escape(row.dataset.name)}"]`) ?? byId("find-adapter");
    this.#changed(this.texts.removed, row.dataset.name);
    focus?.focus();
  }

  /** Follows the pointer: a row that it passes changes places with the dragged one, which itself stays where it is captured. */
  #drag(down, row) {
    if (down.button !== 0) return;
    down.preventDefault();
    const grip = down.currentTarget;
    grip.setPointerCapture(down.pointerId);
    row.dataset.dragged = "";
    const before = this.names.join();
    const move = ({ clientY }) => {
      const above = row.previousElementSibling;
      const below = row.nextElementSibling;
      if (above && clientY < middle(above)) row.after(above);
      else if (below && clientY > middle(below)) row.before(below);
      this.#number();
    };
    const end = () => {
      grip.removeEventListener("pointermove", move);
      delete row.dataset.dragged;
      if (this.names.join() !== before) this.#changed(this.texts.moved, row.dataset.name);
    };
    grip.addEventListener("pointermove", move);
    for (const name of ["pointerup", "pointercancel"]) grip.addEventListener(name, end, { once: true });
  }

  #number() {
    this.rows.forEach((row, index) => { row.querySelector(".merge-position").textContent = index + 1; });
  }

  #changed(text, name) {
    this.#number();
    if (text) byId("announce").textContent = fill(text, { name, position: this.names.indexOf(name) + 1, total: this.names.length });
    this.onChange();
  }
}

const middle = (row) => {
  const { top, height } = row.getBoundingClientRect();
  return top + height / 2;
};
