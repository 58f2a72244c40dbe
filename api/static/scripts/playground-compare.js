// Models side by side: one compare job, its texts in columns, the first difference from the first model marked.

import { adapterList, iconButton } from "./playground-adapters.js";
import { offer, optionOf, pick, searchField } from "./playground-choices.js";
import { Run } from "./playground-generate.js";
import { markedText } from "./playground-output.js";
import { byId, element, errorNotice, failureNotice, fill, layoutTexts } from "./page.js";

const MOST_VARIANTS = 8;

export function setUpComparison({ models, adapters: adapterChoices, texts, settings, model }) {
  let variants = [];
  let run = null;

  // ---- the models ----

  function add(name, adapters = []) {
    const choice = element("select", {}, element("option", { value: "" }, ""), models.first.map(optionOf));
    pick(choice, name ?? "");
    const find = searchField(models, choice, { label: texts.findModel, texts, show: (found) => offer(choice, found.map(optionOf)) });
    const chosen = adapterList(adapterChoices, texts);
    chosen.set(adapters);
    const number = element("span", { class: "badge" });
    const node = element("li", { class: "variant" }, element("div", { class: "row" }, number, choice,
      iconButton("close", texts.removeVariant, () => {
        variants = variants.filter((other) => other.node !== node);
        node.remove();
        renumber();
        byId("variant-add").focus();
      })), find, element("details", { open: adapters.length > 0 }, element("summary", {}, texts.adapters), chosen.node));
    variants.push({ node, number, choice, chosen });
    byId("variants").append(node);
    renumber();
  }

  function renumber() {
    variants.forEach(({ number, choice }, index) => {
      number.textContent = String(index + 1);
      choice.setAttribute("aria-label", fill(texts.variant, { n: index + 1 }));
    });
    byId("variant-add").hidden = variants.length >= MOST_VARIANTS;
  }

  function fromLineage() {
    const { base, adapters } = models.known.get(model());
    variants = [];
    byId("variants").replaceChildren();
    add(base);
    add(base, adapters);
    add(model());
  }

  function offerLineage() {
    byId("variant-lineage").hidden = !models.known.get(model())?.base;
    if (variants.length > 1) return;
    if (!byId("variant-lineage").hidden) fromLineage();
    else {
      variants = [];
      byId("variants").replaceChildren();
      add(model());
      add("");
    }
  }

  byId("variant-add").addEventListener("click", () => add(""));
  byId("variant-lineage").addEventListener("click", fromLineage);
  byId("model").addEventListener("change", offerLineage);
  offerLineage();

  // ---- the job ----

  function body() {
    const given = variants.filter(({ choice }) => choice.value)
      .map(({ choice, chosen }) => ({ model: choice.value, adapters: chosen.value(), ...settings.loading() }));
    const label = ({ model: name, adapters }) => [name, ...adapters.map(({ name: own, scale }) => (scale === 1 ? own : `${own}@${scale}`))].join(" + ");
    const labels = given.map(label);
    // the same model twice is allowed: a number makes the labels differ
    const labelled = given.map((variant, index) => ({
      ...variant, label: labels.indexOf(labels[index]) === index ? labels[index] : `${labels[index]} (${index + 1})`,
    }));
    const system = settings.system();
    const messages = [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: byId("compare-text").value }];
    return {
      kind: "compare", variants: labelled, messages, fit_context: true, ...settings.template(), sampling: settings.sampling(), ...settings.form.output(),
    };
  }

  function showProgress(progress) {
    const bar = byId("compare-progress");
    bar.hidden = !progress;
    if (!progress) return;
    if (progress.fraction === null) bar.removeAttribute("value");
    else bar.value = progress.fraction;
    byId("compare-note").textContent = layoutTexts.stages[progress.stage] ?? progress.stage;
  }

  function showResult({ result }) {
    const [comparison] = result.comparisons;
    const labels = result.variants.map(({ label }) => label);
    const difference = (label) => comparison.differences.find(({ variants: pair }) => pair.includes(labels[0]) && pair.includes(label));
    const columns = comparison.outputs.map((output, index) => {
      const own = index === 0 ? null : difference(labels[index]);
      const verdict = index === 0 ? texts.reference
        : own?.token === null || own?.token === undefined ? texts.equal : fill(texts.differs, { token: own.token + 1 });
      return element("article", { class: "card column" }, element("h3", { class: "wrap" }, labels[index]),
        output.error ? failureNotice(output.error) : markedText(output.text, own?.character ?? null),
        element("p", { class: "soft" }, output.error ? "" : verdict));
    });
    byId("compare-result").replaceChildren(element("div", { class: "side-by-side" }, columns));
    byId("compare-result").scrollIntoView({ block: "nearest" });
    const equal = result.pairs.every((pair) => pair.equal === pair.compared);
    byId("compare-note").textContent = [equal ? texts.same : "", fill(texts.seed, { seed: result.seed })].filter(Boolean).join(" · ");
  }

  byId("compare-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const asked = body();
    if (run || !settings.check()) return;
    if (asked.variants.length < 2) {
      byId("compare-note").textContent = texts.twoVariants;
      return;
    }
    run = new Run();
    setRunning();
    byId("compare-note").textContent = texts.queued;
    byId("compare-result").replaceChildren();
    try {
      const job = await run.start(asked, { onProgress: showProgress });
      if (job.status === "succeeded") showResult(job);
      else {
        byId("compare-note").textContent = job.status === "canceled" ? texts.stopped : "";
        if (job.error) byId("compare-result").replaceChildren(failureNotice(job.error));
      }
    } catch (error) {
      byId("compare-note").textContent = "";
      byId("compare-result").replaceChildren(errorNotice(error));
    } finally {
      run = null;
      setRunning();
      showProgress(null);
    }
  });
  byId("compare-stop").addEventListener("click", () => run?.cancel());
  setRunning();

  function setRunning() {
    byId("compare-send").disabled = Boolean(run);
    byId("compare-stop").hidden = !run;
  }
}
