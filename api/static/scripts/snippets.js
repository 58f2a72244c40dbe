// A request of the API as the text of a command, of a program and of curl. Needs no page, so that tests can run it.

const isEmpty = (value) => value === null || value === undefined
  || (typeof value === "object" && Object.keys(value).length === 0);

// ---- quoting ----

/** Quotes a word for a POSIX shell, if it needs that. */
export const shellWord = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** Writes a JSON value as a Python literal. */
export function pythonLiteral(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(pythonLiteral).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${pythonLiteral(item)}`).join(", ")}}`;
  }
  return JSON.stringify(value); // escapes of JSON's strings mean the same in Python
}

// ---- curl ----

const inSingleQuotes = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** `id` is a shell variable that holds the job's id, `after` one of the job before it. */
function curl(request, { url, needsKey, id = null, after = null }) {
  const key = needsKey ? '  -H "Authorization: Bearer $GRAFTWERK_API_KEY" \\\n' : "";
  const address = id ? `-X PUT "${url}/api/jobs/$${id}"` : `-X POST ${shellWord(`${url}/api/jobs`)}`;
  const body = JSON.stringify(after ? { ...request, after: [AFTER] } : request, null, 2);
  const data = inSingleQuotes(body).replace(`"${AFTER}"`, `"'"$${after}"'"`);
  return `curl ${address} \\\n${key}  -H 'Content-Type: application/json' \\\n  -d ${data}`;
}

const AFTER = "the job before";

// ---- Python ----

const METHODS = new Set([
  "import", "convert", "merge", "publish-to-hub", "verify", "extend-tokenizer", "extract", "combine", "generate", "compare",
  "embed", "perplexity", "tokenize",
]);

function call({ kind, ...fields }) {
  if (!METHODS.has(kind)) return `submit(${pythonLiteral({ kind, ...fields })})`;
  const name = kind === "import" ? "import_" : kind.replaceAll("-", "_");
  const lines = Object.entries(fields).map(([field, value]) => `        ${field}=${pythonLiteral(value)},\n`);
  return `${name}(\n${lines.join("")}    )`;
}

function python(requests, { url }) {
  const jobs = requests.map((request) => `    job = client.${call(request)}\n    print(job.wait(progress=True).status)`);
  return `from graftwerk import Client\n\nwith Client(${pythonLiteral(url)}) as client:\n${jobs.join("\n")}`;
}

// ---- graftwerk ----
// An option is a function from a field's value to words of the command; null: the command cannot say it.

const option = (name) => (value) => (String(value).startsWith("-") ? [`${name}=${value}`] : [name, String(value)]);
const each = (name) => (values) => values.flatMap(option(name));
const flag = (name) => (value) => (value ? [name] : []);
const unset = (name) => (value) => (value ? [] : [name]);
const only = (allowed) => (value) => (value === allowed ? [] : null);
const argument = (value) => [String(value)];

/** Words of an object's fields, by a table as below. */
const fieldsOf = (table) => (value) => wordsOf(value, table);

const adapter = (choice) => (typeof choice === "string" ? choice
  : choice.scale === undefined ? choice.name : `${choice.name}@${choice.scale}`);
const adapters = (choices) => ["--adapters", choices.map(adapter).join(",")];

const OUTPUT = {
  output_format: option("--output-format"), dtype: option("--dtype"), max_shard_size: option("--max-shard-size"),
  ranks: option("--ranks"), force: flag("--force"),
  imatrix: fieldsOf({ text_file: option("--imatrix-text-file"), file: option("--imatrix-file") }),
};

const LOADING = { quantization: option("--quantization"), rope_alpha: option("--rope-alpha") };

const SAMPLING = {
  max_new_tokens: option("--max-new-tokens"), temperature: option("--temperature"), top_k: option("--top-k"),
  top_p: option("--top-p"), min_p: option("--min-p"), repetition_penalty: option("--repetition-penalty"),
  num_beams: option("--num-beams"), do_sample: unset("--greedy"), seed: option("--seed"), n: option("--n"), stop: each("--stop"),
};

// one prompt in a list would become the field `prompt`
const severalPrompts = (prompts) => (prompts.length > 1 ? each("--prompt")(prompts) : null);
const onVolume = (name) => (path) => (path.startsWith("incoming/") ? option(name)(path) : null);

const PROMPTS = {
  prompt: option("--prompt"), prompts: severalPrompts, template: option("--template"), system: option("--system"),
  input: option("--input"), sampling: fieldsOf(SAMPLING),
};

function source(value) {
  if (value.hub) {
    const rest = Object.keys(value).filter((name) => !["hub", "revision", "files"].includes(name));
    if (rest.length) return null;
    return [`hub:${value.hub}${value.revision ? `@${value.revision}` : ""}`, ...each("--files")(value.files ?? [])];
  }
  const path = value.path ?? value.zip;
  if (!path?.startsWith("incoming/")) return null;
  if (value.zip) return /\.zip$/i.test(path) ? [path] : [path, "--zip"];
  return /\.zip$/i.test(path) ? null : [path];
}

const digests = (byPath) => Object.entries(byPath).flatMap(([path, hex]) => option("--sha256")(`${path}=${hex}`));

// of a comparison all variants are loaded alike
function variants(values) {
  const loading = values.map(({ quantization = null, rope_alpha = null }) => JSON.stringify([quantization, rope_alpha]));
  if (new Set(loading).size > 1) return null;
  const { quantization, rope_alpha } = values[0];
  const names = values.map((one) => `${one.label ? `${one.label}=` : ""}${[one.model, ...(one.adapters ?? []).map(adapter)].join("+")}`);
  return [...wordsOf({ quantization, rope_alpha }, LOADING), ...names];
}

const MODEL = { model: argument, adapters };
const texts = (words) => (words.some((text) => text.startsWith("-")) ? ["--", ...words] : words);

const KINDS = {
  import: { source, target: option("--target"), sha256: digests },
  convert: { source: argument, target: argument, instruct: flag("--instruct"), base: option("--base"), measure: fieldsOf({ text_file: option("--measure") }), ...OUTPUT },
  merge: {
    base: argument, adapters, target: option("--target"), rounding: option("--rounding"), verify: unset("--no-verify"),
    base_precision: option("--base-precision"), compare_precisions: flag("--compare-precisions"), ...OUTPUT,
  },
  verify: { model: argument, base: option("--base"), adapters },
  "publish-to-hub": { model: argument, repository: argument, private: unset("--public") },
  "extend-tokenizer": { base: argument, addition: argument, target: option("--target"), pad_token: option("--pad-token") },
  extract: { base: argument, model: argument, rank: option("--rank"), target: option("--target") },
  combine: {
    adapters: (choices) => choices.map(adapter), target: option("--target"), method: option("--method"),
    density: option("--density"), seed: option("--seed"), rank: option("--rank"),
  },
  generate: { ...MODEL, ...PROMPTS, ...LOADING, prompts_file: onVolume("--prompts-file"), return_token_ids: flag("--return-token-ids"), forward: only(true) },
  compare: { variants, ...PROMPTS },
  embed: { ...MODEL, inputs: texts },
  tokenize: {
    ...MODEL, token_ids: (lists) => lists.flatMap((ids) => option("--token-ids")(ids.join(","))),
    add_special_tokens: unset("--no-special-tokens"), parse_special: flag("--parse-special"), return_pieces: flag("--pieces"),
    texts,
  },
  perplexity: { ...MODEL, text_file: onVolume("--file"), context: option("--context"), stride: option("--stride"), ...LOADING },
};

const ANY = { kind: () => [], after: each("--after"), fit_context: only(false) };

/** Words of the fields of an object in the order of the table; null if one of them cannot be said. */
function wordsOf(fields, table) {
  const given = Object.entries(fields).filter(([, value]) => !isEmpty(value));
  if (given.some(([name]) => !(name in table))) return null;
  const order = Object.keys(table);
  given.sort(([one], [other]) => order.indexOf(one) - order.indexOf(other));
  const words = given.map(([name, value]) => table[name](value));
  return words.includes(null) ? null : words.flat();
}

export const DEFAULT_URL = "http://127.0.0.1:8000";

function command(request, { url }) {
  const table = KINDS[request.kind];
  const words = table && wordsOf(request, { ...ANY, ...table });
  if (!words) return null;
  const address = url === DEFAULT_URL ? [] : ["--url", url];
  return ["graftwerk", request.kind, ...address, ...words].map(shellWord).join(" ");
}

/**
 * Returns a request as `curl`, `python` and `graftwerk`; the last is null if the command has no option for one of its fields.
 * The key of a service that needs one is read from GRAFTWERK_API_KEY by all three.
 */
export function snippets(request, { url, needsKey = false }) {
  return chainSnippets([request], { url, needsKey });
}

/** Returns the same of several requests, each of which runs after the one before it has succeeded. */
export function chainSnippets(requests, { url, needsKey = false }) {
  const last = requests.length - 1;
  const posts = requests.map((request, index) => {
    const id = index < last ? `job${index + 1}` : null;
    return `${id ? `${id}=$(uuidgen)\n` : ""}${curl(request, { url, needsKey, id, after: index > 0 ? `job${index}` : null })}`;
  });
  const commands = requests.map((request) => command(request, { url }));
  return {
    curl: posts.join("\n"), python: python(requests, { url }),
    graftwerk: commands.includes(null) ? null : commands.join(" &&\n"),
  };
}
