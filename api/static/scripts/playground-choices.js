// Models and adapters to choose from: the page carries the first of many, a search on the server finds the others.

import { element, fill, json, LANGUAGE, toast } from "./page.js";

const DELAY_MS = 200;
const OPENING_KEYS = ["ArrowDown", "Enter"];

export class Choices {
  /** `first` are those that the page carries, of `total`; `path` is where the others are searched. */
  constructor({ choices, total }, path) {
    this.first = choices;
    this.total = total;
    this.path = path;
    this.known = new Map();
    this.#learn(choices);
  }

  get isCut() {
    return this.total > this.first.length;
  }

  /** Returns the choices that a search finds, and those with these names. */
  async find(search, names = []) {
    const found = await json(`${this.path}?${new URLSearchParams([["search", search], ...names.map((name) => ["name", name])])}`);
    this.#learn(found.choices);
    return found;
  }

  /** Asks for those of these names that exist, unless all are known. */
  async ask(names) {
    const unknown = names.filter((name) => !this.known.has(name));
    if (this.isCut && unknown.length) await this.find("", unknown);
  }

  #learn(choices) {
    for (const choice of choices) this.known.set(choice.name, choice);
  }
}

/** Chooses an option of a selection, which gets it if the search has not found it. */
export function pick(select, name) {
  if (![...select.options].some(({ value }) => value === name)) select.prepend(element("option", { value: name }, name));
  select.value = name;
}

/** Replaces the options of a selection, apart from the empty one; the chosen option stays. */
export function offer(select, options) {
  const chosen = select.value;
  select.replaceChildren(...[...select.options].filter(({ value }) => value === ""), ...options);
  pick(select, chosen);
}

export const optionOf = ({ name }) => element("option", { value: name }, name);

/** Returns models as options in two groups. */
export function groupsOf(choices, texts) {
  const groups = [[texts.merged, choices.filter(({ merged }) => merged)], [texts.others, choices.filter(({ merged }) => !merged)]];
  return groups.filter(([, group]) => group.length).map(([label, group]) => element("optgroup", { label }, group.map(optionOf)));
}

/** Returns a field that searches the options of a selection, null if all are listed. `show` gets what it finds. */
export function searchField(choices, select, { label, texts, show }) {
  if (!choices.isCut) return null;
  let timer = null;
  const number = (value) => value.toLocaleString(LANGUAGE);
  const note = element("span", { class: "help", role: "status" });
  const input = element("input", { type: "search", placeholder: label, "aria-label": label, autocomplete: "off", spellcheck: "false" });

  const describe = (shown, matching) => {
    note.textContent = matching > shown ? fill(texts.listed, { shown: number(shown), total: number(matching) }) : fill(texts.found, { count: number(matching) });
  };

  async function search() {
    const asked = input.value;
    try {
      const found = await choices.find(asked);
      if (asked !== input.value) return; // a later one is on its way
      show(found.choices);
      describe(found.choices.length, found.matching);
    } catch (error) {
      toast(error);
    }
  }

  input.addEventListener("input", (event) => {
    event.stopPropagation(); // it is not a setting
    clearTimeout(timer);
    timer = setTimeout(search, DELAY_MS);
  });
  input.addEventListener("keydown", (event) => {
    if (!OPENING_KEYS.includes(event.key)) return;
    event.preventDefault();
    select.focus();
    select.showPicker?.();
  });
  describe(choices.first.length, choices.total);
  return element("div", { class: "find" }, input, note);
}
