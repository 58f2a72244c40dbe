// The page New merge: the composition, its plan, and its submission.

import { followAll } from "./events.js";
import { AdapterList } from "./merge-adapters.js";
import { PlanView } from "./merge-plan.js";
import { chainOf, checksOf, freeName, fromQuery, markOf, nameProblem, proposedName, toQuery } from "./merge-request.js";
import { showTypes } from "./merge-types.js";
import { byId, bytes, copy, element, errorNotice, fill, json, LANGUAGE, textsOf } from "./page.js";
import { chainSnippets } from "./snippets.js";

const form = byId("composition");
const texts = textsOf("merge-texts");
const data = { ...textsOf("merge-data"), bases: {}, adapters: {} }; // facts of all models that were listed, by name
const ADDRESS_MS = 200; // browsers refuse an address that changes with each step of a slider
const FOUND_BY = { "find-base": "bases", "find-adapter": "adapters" }; // the list of each field for searching
const FORMATS = { huggingface: "Hugging Face", gguf: "GGUF", meta: texts.original };
let isNameProposed = true;
let complete = null; // the composition, if nothing is missing
let isPossible = false;
let chosenBase = "";
let shownForm = "graftwerk";
let addressTimer = null;

function start() {
  learn();
  const list = byId("chosen") && new AdapterList(byId("chosen"), data.adapters, texts, changed);
  const plan = new PlanView(texts, { onAnswer: answered, onOrder: reorder });
  Object.assign(form, { list, plan });
  restore();
  form.addEventListener("input", ({ target }) => {
    if (target.name === "target") isNameProposed = false;
    if (target.name === "base") chosenBase = target.value;
    if (target.type !== "search" && !target.closest("#chosen")) changed(); // the list reports its changes itself
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.type === "search") event.preventDefault(); // it does not submit the merge
  });
  form.addEventListener("htmx:after:swap", ({ target }) => found(byId(FOUND_BY[target.id])));
  field("target").addEventListener("change", () => {
    if (field("target").value) return;
    isNameProposed = true; // a field that is left empty is filled again
    changed();
  });
  followAll({ onStatus: noteArrival });
  form.addEventListener("submit", submit);
  byId("adapters").addEventListener("click", ({ target }) => {
    const { add } = target.closest("[data-add]")?.dataset ?? {};
    if (add) list.add(add);
  });
  for (const button of form.querySelectorAll("[data-form]")) button.addEventListener("click", () => showForm(button.dataset.form));
  byId("copy-snippet").addEventListener("click", () => copy(byId("snippet").textContent));
  changed();
}

// ---- the composition ----

const field = (name) => form.elements.namedItem(name);

/** Takes the facts of the models that are listed; those of earlier lists stay known. */
function learn() {
  for (const { value, dataset } of byId("bases").querySelectorAll("[data-facts]")) data.bases[value] = JSON.parse(dataset.facts);
  for (const { dataset } of byId("adapters").querySelectorAll("[data-facts]")) data.adapters[dataset.name] = JSON.parse(dataset.facts);
}

/** Follows a search: the list is a new one, in which the chosen base is still chosen. */
function found(place) {
  learn();
  const radio = [...place.querySelectorAll('[name="base"]:enabled')].find(({ value }) => value === chosenBase);
  if (radio) radio.checked = true;
  else if (place.id === "bases" && chosenBase) byId("find-base").dispatchEvent(new Event("input")); // it was chosen during the search
  showAdapters(compose());
  byId("announce").textContent = place.querySelector(".merge-found")?.textContent ?? "";
}

/** Chooses what the address names; the page has chosen the base. */
function restore() {
  const given = fromQuery(new URLSearchParams(location.search));
  const problems = [];
  for (const { name, scale } of given.adapters) {
    if (data.adapters[name]) form.list.add(name, scale);
    else problems.push(fill(texts.unknownAdapter, { name }));
  }
  const radio = form.querySelector('[name="base"]:checked');
  if (radio) {
    chosenBase = radio.value;
    const list = radio.closest(".merge-bases");
    list.scrollTop = radio.closest("label").offsetTop - list.offsetTop - list.clientHeight / 3;
  }
  if (given.base && given.base !== chosenBase) problems.push(fill(texts.unknownBase, { name: given.base }));
  const format = form.querySelector(`[name="output_format"][value="${CSS.escape(given.output_format)}"]`);
  if (format) format.checked = true;
  if ([...field("dtype").options].some(({ value }) => value === given.dtype)) field("dtype").value = given.dtype;
  if (given.target) [field("target").value, isNameProposed] = [given.target, false];
  if (problems.length) byId("composition").prepend(element("div", { class: "notice merge-missing", "data-kind": "warning", role: "alert" }, problems.map((text) => element("p", {}, text))));
}

function compose() {
  const checked = (name) => field(name).checked;
  const text = (name) => field(name).value.trim();
  const matrix = text("imatrix");
  return {
    base: form.querySelector('[name="base"]:checked')?.value ?? "", adapters: form.list?.choices ?? [], target: text("target"),
    output_format: form.querySelector('[name="output_format"]:checked').value, dtype: text("dtype"),
    max_shard_size: text("max_shard_size"), ranks: field("ranks").value ? field("ranks").valueAsNumber : null,
    imatrix: matrix && (matrix.endsWith(".gguf") ? { file: matrix } : { text_file: matrix }),
    rounding: text("rounding"), base_precision: text("base_precision"), compare_precisions: checked("compare_precisions"),
    verify: checked("verify"), force: checked("force"),
    keptBase: !byId("keep-base").hidden && checked("keepBase") ? text("keepBaseName") : null,
    keptMerge: !byId("keep-merge").hidden && checked("keepMerge") ? text("keepMergeName") : null,
  };
}

/** Follows a change: shows the fields that apply, proposes names, asks for the plan. */
function changed() {
  const format = form.querySelector('[name="output_format"]:checked').value;
  const base = form.querySelector('[name="base"]:checked')?.value;
  showFieldsOf(format, data.bases[base]);
  if (isNameProposed) field("target").value = proposedName(compose(), data.names);
  proposeKept("keepBase", "keep-base", () => freeName(`${base}-hf`, data.names));
  proposeKept("keepMerge", "keep-merge", proposedMerge);
  const composed = compose();
  showAdapters(composed);
  showSizes(composed);
  const isNamed = showNames(composed);
  byId("submit") && (byId("submit").textContent = triesAfter(composed) ? texts.mergeAndTry : texts.mergeOnly);
  clearTimeout(addressTimer);
  addressTimer = setTimeout(() => showAddress(toQuery(composed, isNameProposed)), ADDRESS_MS);
  const missing = missingIn(composed, isNamed);
  complete = missing ? null : composed;
  if (missing) form.plan.idle(missing);
  else if (byId("submit")) form.plan.ask(checksOf(composed), factsOf(composed));
  else form.plan.idle(""); // a key that may not submit may not plan either
  showSnippet();
}

const showAddress = (query) => history.replaceState(null, "", query.size ? `?${query}` : location.pathname);

/** Returns a text about what a composition lacks, null if it is complete. */
function missingIn({ base, adapters }, isNamed) {
  if (!base || !adapters.length) return texts.idle;
  const unscaled = adapters.find(({ scale }) => !Number.isFinite(scale));
  if (unscaled) return fill(texts.badScale, unscaled);
  return isNamed ? null : texts.badName;
}

const triesAfter = ({ output_format: format, keptMerge }) => format === "huggingface" || keptMerge !== null;

function showFieldsOf(format, base) {
  for (const help of form.querySelectorAll("[data-format-help]")) help.hidden = help.dataset.formatHelp !== format;
  for (const group of form.querySelectorAll("[data-for]")) group.hidden = group.dataset.for !== format;
  for (const group of field("dtype").querySelectorAll("optgroup")) group.hidden = group.disabled = group.dataset.format !== format;
  if (field("dtype").selectedOptions[0].parentElement.disabled) field("dtype").value = "";
  byId("dtype-help").textContent = field("dtype").selectedOptions[0].dataset.help;
  byId("keep-base").hidden = base?.kind !== "original";
  byId("keep-merge").hidden = format === "huggingface";
}

function proposeKept(checkbox, id, propose) {
  const box = byId(id).querySelector(".field");
  const input = box.querySelector("input");
  const wasHidden = box.hidden;
  box.hidden = !field(checkbox).checked;
  if (wasHidden && !box.hidden) input.value = propose();
}

const proposedMerge = () => (isNameProposed ? proposedName({ ...compose(), output_format: "huggingface" }, data.names)
  : freeName(`${field("target").value}-hf`, data.names));

/** Shows what is wrong with the names of the new models; returns true if nothing is. */
function showNames({ target, keptBase, keptMerge }) {
  const shown = [["target", "target-problem", target], ["keep-base-name", "keep-base-problem", keptBase], ["keep-merge-name", "keep-merge-problem", keptMerge]]
    .filter(([, , name]) => name !== null);
  const twice = (name) => shown.filter(([, , other]) => other.toLowerCase() === name.toLowerCase()).length > 1;
  const isChosen = form.list?.names.length && form.querySelector('[name="base"]:checked');
  return shown.map(([input, place, name]) => {
    const problem = nameProblem(name, data.names) ?? (twice(name) ? "sameNames" : null);
    const isShown = problem && (problem !== "empty" || isChosen);
    byId(place).textContent = isShown ? texts[problem] : "";
    byId(input).toggleAttribute("aria-invalid", Boolean(isShown));
    return problem === null;
  }).every(Boolean);
}

function showAdapters({ base }) {
  if (!form.list) return;
  const facts = base && { name: base, ...data.bases[base] };
  const textOf = (name) => {
    const mark = markOf(data.adapters[name], facts);
    const values = Object.entries(mark?.values ?? {}).map(([key, value]) => [key, typeof value === "number" ? value.toLocaleString(LANGUAGE) : value]);
    return mark && fill(texts[mark.text], Object.fromEntries(values));
  };
  form.list.mark(textOf);
  const chosen = form.list.names;
  byId("none-chosen").hidden = chosen.length > 0;
  for (const item of byId("available").children) {
    const mark = item.querySelector(".merge-mark");
    const text = textOf(item.dataset.name);
    item.hidden = chosen.includes(item.dataset.name);
    mark.textContent = text ?? "";
    mark.hidden = !text;
  }
  byId("available-title").hidden = !byId("find-adapter") && [...byId("available").children].every(({ hidden }) => hidden);
}

/** Shows next to each type of numbers the size that it would give, from the base's parameters. */
function showSizes({ base }) {
  const parameters = data.bases[base]?.parameters;
  for (const option of field("dtype").options) {
    const { bits } = option.dataset;
    if (!bits) continue;
    const size = parameters ? ` · ${fill(texts.about, { bytes: bytes(parameters * bits / 8) })}` : "";
    option.textContent = `${option.value} · ${fill(texts.bits, { bits: Number(bits).toLocaleString(LANGUAGE) })}${size}`;
  }
  showTypes(byId("types"), field("dtype"), parameters);
}

function factsOf({ base, adapters, output_format: format, dtype, base_precision: precision }) {
  return {
    base: { name: base, ...data.bases[base], isRounded: precision === "dequantized" },
    adapters: adapters.map((choice) => ({ ...choice, vocabulary: data.adapters[choice.name].vocabulary })),
    isConverted: format !== "huggingface",
    format: dtype ? `${FORMATS[format]} ${dtype}` : FORMATS[format],
  };
}

function reorder(names) {
  form.list.reorder(names);
  byId("announce").textContent = fill(texts.reordered, { names: names.join(", ") });
  byId("adapters-title").scrollIntoView({ block: "nearest" });
  form.list.rows[0]?.querySelector("button")?.focus();
}

// ---- the plan's answer, snippets, submission ----

function answered(possible) {
  isPossible = possible;
  if (!byId("submit")) return;
  byId("submit").disabled = !possible;
  byId("unmerged").hidden = !possible || data.bases[complete.base].kind !== "huggingface";
  if (possible) byId("unmerged").href = `/playground?${new URLSearchParams({ model: complete.base, adapters: complete.adapters.map(({ name, scale }) => (scale === 1 ? name : `${name}@${scale}`)).join(",") })}`;
}

function showForm(name) {
  shownForm = name;
  for (const button of form.querySelectorAll("[data-form]")) button.setAttribute("aria-pressed", String(button.dataset.form === name));
  showSnippet();
}

function showSnippet() {
  const needsKey = form.dataset.needsKey !== undefined;
  const found = complete && chainSnippets(chainOf(complete), { url: location.origin, needsKey })[shownForm];
  byId("copy-snippet").disabled = !found;
  byId("snippet").textContent = found ?? (complete ? texts.noCommand : texts.incomplete);
}

/** Offers a model that has come since the page was loaded; the address keeps what is chosen. */
function noteArrival({ status, request: { target } }) {
  if (status !== "succeeded" || !target || data.names.includes(target)) return;
  data.names.push(target);
  const notice = element("p", {}, `${fill(texts.arrived, { name: target })} `, element("a", { href: "", onclick: reload }, texts.reload));
  form.prepend(element("div", { class: "notice merge-missing", "data-kind": "info", role: "status" }, notice));
  changed();
}

function reload(event) {
  event.preventDefault();
  location.reload();
}

async function submit(event) {
  event.preventDefault();
  if (!isPossible) return;
  const button = byId("submit");
  button.disabled = true;
  button.textContent = texts.submitting;
  const ids = [];
  try {
    for (const request of chainOf(complete)) {
      const { id } = await json("/api/jobs", { body: { ...request, ...(ids.length ? { after: [ids.at(-1)] } : {}) } });
      ids.push(id);
    }
    location.assign(`/merge?jobs=${ids.join(",")}`);
  } catch (error) {
    await Promise.allSettled(ids.map((id) => json(`/api/jobs/${id}/cancel`, { method: "POST" })));
    changed();
    document.querySelector('[data-place="submit"]').replaceChildren(errorNotice(error));
  }
}

if (form) start();
