// A merge as it is composed: requests for the API, the proposed name, marks of adapters. Needs no page, so that tests can run it.

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$/;
const LONGEST_NAME = 96;

/** Fields of the output that a composition has; those of another format are left out. */
const OUTPUT_FIELDS = { huggingface: ["max_shard_size"], meta: ["ranks"], gguf: ["imatrix"] };

/** Returns the fields of the output, without defaults. */
function outputOf(form) {
  const fields = {};
  if (form.output_format !== "huggingface") fields.output_format = form.output_format;
  if (form.dtype) fields.dtype = form.dtype;
  for (const name of OUTPUT_FIELDS[form.output_format]) if (form[name]) fields[name] = form[name];
  if (form.force) fields.force = true;
  return fields;
}

function arithmeticOf(form) {
  return {
    ...(form.rounding === "once" ? { rounding: "once" } : {}), ...(form.verify ? {} : { verify: false }),
    ...(form.base_precision === "dequantized" ? { base_precision: "dequantized" } : {}),
    ...(form.compare_precisions ? { compare_precisions: true } : {}),
  };
}

const choice = ({ name, scale }) => (scale === 1 ? name : { name, scale });

function merge(form, { base = form.base, target = form.target, output = outputOf(form) } = {}) {
  return { kind: "merge", base, adapters: form.adapters.map(choice), target, ...arithmeticOf(form), ...output };
}

const keptBase = (form) => ({ kind: "convert", source: form.base, target: form.keptBase });
const intoKeptMerge = (form, base) => merge(form, { base, target: form.keptMerge, output: form.force ? { force: true } : {} });

/** Returns the requests in the order in which they run, each after the one before it. */
export function chainOf(form) {
  const base = form.keptBase || form.base;
  return [
    ...(form.keptBase ? [keptBase(form)] : []),
    ...(form.keptMerge
      ? [intoKeptMerge(form, base), { kind: "convert", source: form.keptMerge, target: form.target, ...outputOf(form) }]
      : [merge(form, { base })]),
  ];
}

/** Returns requests of the models that exist already, whose plans together are that of the chain: the merge itself is the first. */
export function checksOf(form) {
  return [merge(form), ...(form.keptBase ? [keptBase(form)] : []), ...(form.keptMerge ? [intoKeptMerge(form, form.base)] : [])];
}

// ---- names ----

/** Returns what is wrong with a name for a new model: "empty", "rule", "exists", or null. */
export function nameProblem(name, names) {
  if (!name) return "empty";
  if (!NAME.test(name)) return "rule";
  return names.some((other) => other.toLowerCase() === name.toLowerCase()) ? "exists" : null;
}

/** Returns a name that no model has, from one that may be taken. */
export function freeName(name, names) {
  for (let number = 1; ; number += 1) {
    const ending = number === 1 ? "" : `-${number}`;
    const tried = name.slice(0, LONGEST_NAME - ending.length) + ending;
    if (nameProblem(tried, names) !== "exists") return tried;
  }
}

const withoutEnding = (name) => name.replace(/(?<=.)[-_.](hf|original|lora|qlora|adapter)$/i, "");

/** Returns a name for the new model, from the base, the last adapter and the format. */
export function proposedName({ base, adapters, output_format: format, dtype }, names) {
  if (!base || !adapters.length) return "";
  const parts = [withoutEnding(base), withoutEnding(adapters.at(-1).name)];
  if (format === "gguf") parts.push(dtype || "gguf");
  if (format === "meta") parts.push("meta");
  return freeName(parts.join("-"), names);
}

// ---- marks ----

/**
 * Returns why an adapter does not seem to belong to a base, from the summaries of both, or null.
 * `base` is the base's facts with its `name`. The plan is the judge; a mark only says what to expect of it.
 */
export function markOf(adapter, base) {
  if (!base) return null;
  if (adapter.base && adapter.base !== base.name && !base.inputs.some((name) => name === adapter.base || name.split("@")[0] === adapter.path)) {
    return { text: "otherBase", values: { base: adapter.base } };
  }
  if (adapter.knownBase && base.known && adapter.knownBase !== base.known) {
    return { text: "knownBase", values: { adapter: adapter.known, needed: adapter.knownBase, found: base.known } };
  }
  if (adapter.width && base.width && adapter.width !== base.width) {
    return { text: "otherWidth", values: { found: adapter.width, needed: base.width } };
  }
  if (adapter.vocabulary && base.vocabulary && adapter.vocabulary < base.vocabulary) {
    return { text: "shrinks", values: { rows: adapter.vocabulary, before: base.vocabulary } };
  }
  return null;
}

// ---- the address of a composition ----

const choiceText = ({ name, scale }) => (scale === 1 ? name : `${name}@${scale}`);

/** Returns a composition as query parameters; defaults are left out. */
export function toQuery(form, isNameProposed) {
  const query = new URLSearchParams();
  if (form.base) query.set("base", form.base);
  if (form.adapters.length) query.set("adapters", form.adapters.map(choiceText).join(","));
  if (form.target && !isNameProposed) query.set("target", form.target);
  if (form.output_format !== "huggingface") query.set("output_format", form.output_format);
  if (form.dtype) query.set("dtype", form.dtype);
  return query;
}

/** Returns the composition in query parameters. */
export function fromQuery(query) {
  const adapters = (query.get("adapters") ?? "").split(",").filter(Boolean).map((text) => {
    const [name, scale] = text.split("@");
    return { name, scale: Number.isFinite(Number(scale)) && scale ? Number(scale) : 1 };
  });
  const given = Object.fromEntries(["base", "target", "output_format", "dtype"].map((name) => [name, query.get(name) ?? ""]));
  return { ...given, adapters: adapters.filter(({ name }, index) => adapters.findIndex((other) => other.name === name) === index) };
}
