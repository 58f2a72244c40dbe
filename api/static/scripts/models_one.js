// The page of one model: verification, conversion, deletion, snippets.

import { byId, confirmed, copy, element, fill, request, textsOf, toast } from "./page.js";
import { runJob, showPlan } from "./models_job.js";
import { DEFAULT_URL, pythonLiteral, shellWord, snippets } from "./snippets.js";

const texts = textsOf("models-texts");
const name = byId("actions").dataset.name;
const needsKey = "needsKey" in byId("actions").dataset;

// ---- lineage ----

// on a narrow screen the graph is wider than its place: this model is in the middle of it
const lineage = document.querySelector(".lineage");
if (lineage) {
  const own = lineage.querySelector("[data-current]").getBoundingClientRect();
  lineage.scrollLeft = own.left + own.width / 2 - lineage.getBoundingClientRect().left - lineage.clientWidth / 2;
}

// ---- model card ----

const prose = document.querySelector(".prose");
if (prose) {
  const button = byId("unfold");
  if (prose.scrollHeight > prose.clientHeight + 8) button.hidden = false;
  else delete prose.dataset.folded;
  button.addEventListener("click", () => {
    prose.toggleAttribute("data-folded", false);
    button.remove();
  });
}

// ---- deletion ----

byId("delete")?.addEventListener("click", async () => {
  try {
    const content = element("div");
    // a fragment of this service, rendered and escaped by it
    content.innerHTML = await (await request(`/models/${name}/delete`, { headers: { "HX-Request": "true" } })).text();
    if (!(await confirmed(content, { confirm: texts.delete, danger: true }))) return;
    await request(`/api/models/${name}`, { method: "DELETE" });
    location.assign("/");
  } catch (error) {
    toast(error, "error");
  }
});

// ---- verification ----

const verify = byId("verify");

function verifyRequest() {
  const inputs = verify?.elements.inputs;
  return { ...JSON.parse(verify.dataset.request), ...(inputs?.checked ? JSON.parse(inputs.dataset.inputs) : {}) };
}

verify?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = verify.querySelector("button");
  button.disabled = true;
  const ended = await runJob(byId("verify-job"), verifyRequest(), "verify");
  button.disabled = false;
  if (ended?.status !== "succeeded") return;
  const page = await (await request(location.pathname)).text();
  const found = new DOMParser().parseFromString(page, "text/html");
  byId("verification").replaceWith(document.adoptNode(found.getElementById("verification")));
  byId("verify-job").replaceChildren();
  toast(ended.result.passed ? texts.verifyPassed : texts.verifyFailed, ended.result.passed ? "ok" : "error");
});

// ---- conversion ----

const convert = byId("convert");

/** Returns the fields that were changed from the API's defaults. */
function convertRequest() {
  const { output_format: format, dtype, base, target } = Object.fromEntries(new FormData(convert));
  return {
    kind: "convert", source: name, target, ...(format === "huggingface" ? {} : { output_format: format }),
    ...(dtype ? { dtype } : {}), ...(base ? { base } : {}),
  };
}

const SUFFIXES = { huggingface: "hf", meta: "original", gguf: "gguf" };
let isProposed = true;

function updateForm() {
  const format = convert.elements.output_format.value;
  const dtypes = convert.elements.dtype;
  const group = dtypes.querySelector("optgroup");
  if (group) {
    group.disabled = format !== "gguf";
    if (group.disabled && dtypes.selectedOptions[0].closest("optgroup")) dtypes.value = "";
  }
  byId("convert-plan").replaceChildren();
  if (isProposed) convert.elements.target.value = [name, SUFFIXES[format], dtypes.value].filter(Boolean).join("-").slice(0, 96);
}

if (convert) {
  convert.elements.target.addEventListener("input", () => { isProposed = false; });
  convert.addEventListener("change", updateForm);
  updateForm();
  byId("convert-check").addEventListener("click", async () => {
    if (!convert.reportValidity()) return;
    await showPlan(byId("convert-plan"), convertRequest());
  });
  convert.addEventListener("submit", async (event) => {
    event.preventDefault();
    const target = convert.elements.target.value;
    const ended = await runJob(byId("convert-job"), convertRequest(), target);
    if (ended?.status !== "succeeded") return;
    byId("convert-job").firstElementChild.append(element("p", {}, element("a", { href: `/models/${target}` }, fill(texts.open, { name: target }))));
  });
}

// ---- publication ----

const publish = byId("publish");

function publishRequest() {
  const { repository } = Object.fromEntries(new FormData(publish));
  return { kind: "publish-to-hub", model: name, repository, ...(publish.elements.private.checked ? {} : { private: false }) };
}

publish?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const ended = await runJob(byId("publish-job"), publishRequest(), publish.elements.repository.value);
  if (ended?.status !== "succeeded") return;
  const { url } = ended.result;
  byId("publish-job").firstElementChild.append(element("p", {}, element("a", { href: url, rel: "noopener noreferrer" }, url)));
});

// ---- snippets ----

let language = "graftwerk";
const subject = byId("snippet-of");

/** Returns the requests that the forms of this page would send; a download is not a job. */
const REQUESTS = { verify: verifyRequest, convert: convertRequest, publish: publishRequest };

function download() {
  const url = location.origin;
  const key = needsKey ? ' -H "Authorization: Bearer $GRAFTWERK_API_KEY"' : "";
  return {
    graftwerk: ["graftwerk", "pull", name, ...(url === DEFAULT_URL ? [] : ["--url", url])].map(shellWord).join(" "),
    curl: `curl${key} ${shellWord(`${url}/api/models/${name}/archive`)} | tar -x`,
    python: `from graftwerk import Client\n\nwith Client(${pythonLiteral(url)}) as client:\n    client.pull(${pythonLiteral(name)}, progress=True)`,
  };
}

function showSnippet() {
  const made = REQUESTS[subject.value];
  const found = made ? snippets(made(), { url: location.origin, needsKey }) : download();
  byId("snippet").textContent = found[language] ?? texts.noCommand;
  for (const button of byId("snippet-kind").children) button.setAttribute("aria-pressed", button.dataset.snippet === language);
}

byId("snippet-kind").addEventListener("click", ({ target }) => {
  language = target.dataset.snippet ?? language;
  showSnippet();
});
byId("copy").addEventListener("click", () => copy(byId("snippet").textContent));
for (const part of [subject, convert, verify, publish]) part?.addEventListener("input", showSnippet);
convert?.addEventListener("change", showSnippet);
showSnippet();
