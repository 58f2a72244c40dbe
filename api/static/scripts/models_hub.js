// Import from the Hub: search, the files of a repository with their sizes, the choice, the job.

import { byId, bytes, count, element, errorNotice, fill, json, textsOf } from "./page.js";
import { modelName } from "./models_files.js";
import { runJob, showPlan } from "./models_job.js";

const texts = textsOf("models-texts");

const badge = (text, kind) => element("span", { class: "badge", "data-kind": kind }, text);
const literal = (path) => path.replace(/[[*?]/g, "[$&]");

function result(model) {
  const facts = [model.task, model.downloads === null ? null : fill(texts.downloads, { count: count(model.downloads) })];
  return element("li", {}, element("button", { type: "button", class: "result", onclick: () => open(model.id) },
    element("strong", { class: "wrap" }, model.id),
    element("span", { class: "row soft" }, facts.filter(Boolean).join(" · "), model.gated ? badge(texts.gated, "warning") : null,
      model.private ? badge(texts.private, null) : null)));
}

async function search(text) {
  byId("hub-repository").replaceChildren();
  byId("hub-results").replaceChildren(element("p", { class: "soft" }, texts.searching));
  try {
    const { models } = await json(`/api/hub/models?${new URLSearchParams({ search: text, limit: 30 })}`);
    byId("hub-results").replaceChildren(models.length ? element("ul", { class: "plain results" }, models.map(result))
      : element("p", { class: "empty" }, texts.noResults));
  } catch (error) {
    byId("hub-results").replaceChildren(errorNotice(error));
  }
}

// ---- one repository ----

/** Groups files by pattern: each GGUF file is a choice of its own, others are chosen by their ending. */
function patternsOf(files) {
  const found = new Map();
  for (const file of files) {
    const ending = /\.[A-Za-z0-9]+$/.exec(file.path)?.[0];
    const pattern = !ending || ending === ".gguf" ? literal(file.path) : `*${ending}`;
    const group = found.get(pattern) ?? { pattern, files: [], size: 0 };
    group.files.push(file);
    group.size += file.size_bytes;
    found.set(pattern, group);
  }
  return [...found.values()].sort((one, other) => other.size - one.size);
}

class Repository {
  constructor(id, found, revision) {
    Object.assign(this, { id, found, revision });
    this.groups = patternsOf(found.files);
    this.isChosen = Boolean(found.problem);
    this.boxes = new Map();
    this.sum = element("p", { class: "soft", role: "status" });
    this.target = element("input", { id: "hub-target", required: true, maxlength: "96", pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]*", value: modelName(id.split("/")[1]), spellcheck: "false", autocomplete: "off" });
    this.plan = element("div", { class: "soft", "aria-live": "polite" });
    this.node = this.#form();
    this.#count();
  }

  #form() {
    const { found } = this;
    const offered = element("div", { class: "offered", hidden: !this.isChosen, role: "group", "aria-label": texts.choose, tabindex: "0" }, this.groups.map((group) => this.#box(group)));
    const choice = (isAll, label, isDisabled) => element("label", { class: "check" },
      element("input", { type: "radio", name: "hub-files", checked: isAll !== this.isChosen, disabled: isDisabled, onchange: () => { this.isChosen = !isAll; offered.hidden = isAll; this.#count(); } }), label);
    return element("form", { class: "stack", onsubmit: (event) => this.#import(event) },
      element("div", { class: "row" }, element("h3", { class: "grow wrap" }, this.id),
        element("button", { type: "button", class: "quiet small", onclick: close }, texts.back)),
      found.gated ? element("div", { class: "notice", "data-kind": "warning" }, element("p", {}, texts.gatedHelp)) : null,
      found.problem ? errorNotice({ problem: found.problem }) : null,
      element("div", {}, choice(true, texts.needed, Boolean(found.problem)), choice(false, texts.choose, false)),
      offered, this.sum, this.#revisionField(),
      element("div", { class: "field" }, element("label", { for: "hub-target" }, texts.nameOfModel), this.target),
      this.plan,
      element("div", { class: "row" }, element("button", {}, texts.import),
        element("button", { type: "button", class: "quiet", onclick: () => this.#check() }, texts.check)));
  }

  #box(group) {
    const box = element("input", { type: "checkbox", checked: group.files.some((file) => file.selected), onchange: () => this.#count() });
    this.boxes.set(group, box);
    const label = group.files.length === 1 ? group.files[0].path : `${group.pattern} (${group.files.length})`;
    return element("label", { title: group.files.slice(0, 30).map((file) => file.path).join("\n") },
      box, element("span", { class: "wrap" }, label), element("span", { class: "size" }, bytes(group.size)));
  }

  #revisionField() {
    const input = element("input", { id: "hub-revision", value: this.revision, maxlength: "255", spellcheck: "false", autocomplete: "off", placeholder: "main", "aria-describedby": "hub-revision-help" });
    const button = element("button", { type: "button", class: "quiet", onclick: () => open(this.id, input.value.trim()) }, texts.show);
    return element("div", { class: "field" }, element("label", { for: "hub-revision" }, texts.revision),
      element("div", { class: "row" }, element("span", { class: "grow" }, input), button),
      element("span", { class: "help", id: "hub-revision-help" }, texts.revisionHelp));
  }

  get #groupsChosen() {
    return this.groups.filter((group) => this.boxes.get(group).checked);
  }

  #count() {
    const files = this.isChosen ? this.#groupsChosen.flatMap((group) => group.files) : this.found.files.filter((file) => file.selected);
    const size = files.reduce((sum, file) => sum + file.size_bytes, 0);
    this.sum.textContent = fill(texts.selected, { size: bytes(size), count: files.length });
  }

  /** Returns the request, null if nothing is chosen. */
  #request() {
    const files = this.#groupsChosen.map((group) => (group.files.length === 1 ? literal(group.files[0].path) : group.pattern));
    if (this.isChosen && !files.length) {
      this.sum.textContent = texts.nothingChosen;
      return null;
    }
    const source = { hub: this.id, ...(this.revision ? { revision: this.revision } : {}), ...(this.isChosen ? { files } : {}) };
    return { kind: "import", source, target: this.target.value };
  }

  #check() {
    const body = this.target.reportValidity() && this.#request();
    if (body) showPlan(this.plan, body);
  }

  async #import(event) {
    event.preventDefault();
    const body = this.#request();
    if (!body) return;
    const { target } = body;
    const slot = element("div");
    byId("hub-jobs").prepend(slot);
    const ended = await runJob(slot, body, target);
    if (ended?.status === "succeeded") slot.replaceChildren(element("p", {}, element("a", { href: `/models/${target}` }, fill(texts.open, { name: target }))));
  }
}

function close() {
  byId("hub-repository").replaceChildren();
  byId("hub-results").hidden = false;
  byId("hub-text").focus();
}

async function open(id, revision = "") {
  const panel = byId("hub-repository");
  byId("hub-results").hidden = true;
  panel.replaceChildren(element("p", { class: "soft" }, texts.loading));
  panel.focus();
  try {
    const query = revision ? `?${new URLSearchParams({ revision })}` : "";
    const found = await json(`/api/hub/models/${id.split("/").map(encodeURIComponent).join("/")}${query}`);
    panel.replaceChildren(new Repository(id, found, revision).node);
  } catch (error) {
    panel.replaceChildren(errorNotice(error), element("button", { type: "button", class: "quiet", onclick: close }, texts.back));
  }
}

/** Sets up the search. An id is opened at once. */
export function setUpHub() {
  byId("hub-search").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = byId("hub-text").value.trim();
    byId("hub-results").hidden = false;
    if (/^[\w.-]+\/[\w.-]+$/.test(text)) open(text);
    else search(text);
  });
}
