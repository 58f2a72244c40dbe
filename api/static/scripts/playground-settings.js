// Settings of the playground: read from the form, kept in this browser, written as fields of a request.

import { adapterList } from "./playground-adapters.js";
import { formSettings } from "./playground-form.js";
import { byId, element } from "./page.js";

const KEY = "graftwerk-playground-settings";
const OTHER = ["template", "system", "stop", "quantization", "rope_alpha"];
const INTEGERS = ["top_k", "max_new_tokens", "seed", "no_repeat_ngram_size", "num_beams", "min_new_tokens"];
const TOP_TOKENS = 5;

const inputs = () => [...document.querySelectorAll("[data-sampling]")];

const kept = () => JSON.parse(localStorage.getItem(KEY) ?? "{}");

/** Returns the names of the adapters that this browser keeps. */
export const keptAdapters = () => (kept().adapters ?? []).map(({ name }) => name);

/** Returns the settings of `data`, with the adapters of `choices`; `onChange` is called after each change. */
export function settingsOf(data, choices, texts, onChange) {
  const adapters = adapterList(choices, texts, changed);
  const form = formSettings(texts, changed);
  byId("adapters").append(choices.total ? adapters.node : element("p", { class: "soft" }, texts.noAdapters));

  function changed() {
    keep();
    onChange();
  }

  function keep() {
    const values = Object.fromEntries([...inputs().map(({ id }) => id), ...OTHER].map((id) => [id, byId(id).value]));
    const stored = { values, adapters: adapters.value(), probabilities: byId("probabilities").checked, form: form.values() };
    localStorage.setItem(KEY, JSON.stringify(stored));
  }

  function restore() {
    const stored = kept();
    for (const [id, value] of Object.entries(stored.values ?? {})) if (byId(id)) byId(id).value = value;
    byId("probabilities").checked = stored.probabilities ?? false;
    form.restore(stored.form ?? {});
    byId("answer-form").open = form.isUsed();
    adapters.set(data.chosen.length ? data.chosen : (stored.adapters ?? []).filter(({ name }) => choices.known.has(name)));
    namePreset();
  }

  function namePreset() {
    const same = ([, values]) => ["temperature", "top_k", "top_p", "min_p", "repetition_penalty"]
      .every((name) => byId(name).value === String(values[name] ?? ""));
    byId("preset").value = Object.entries(data.presets).find(same)?.[0] ?? "";
  }

  byId("preset").addEventListener("change", ({ target }) => {
    const values = data.presets[target.value];
    for (const name of ["temperature", "top_k", "top_p", "min_p", "repetition_penalty"]) byId(name).value = values[name] ?? "";
    changed();
  });
  byId("settings").addEventListener("input", ({ target }) => {
    if (target.id !== "preset") namePreset();
    changed();
  });
  byId("settings").addEventListener("submit", (event) => event.preventDefault());

  restore();
  return {
    adapters,
    form,
    /** The sampling by its names in the API; empty fields are left out, so that its defaults hold. */
    sampling() {
      const filled = inputs().filter(({ value }) => value !== "");
      const values = Object.fromEntries(filled.map(({ id, value }) => [id, Number(value)]));
      const stop = byId("stop").value.split("\n").filter(Boolean);
      return {
        ...values, ...(stop.length ? { stop } : {}),
        ...(byId("probabilities").checked && !(values.num_beams > 1) ? { logprobs: TOP_TOKENS } : {}),
      };
    },
    loading: () => ({
      ...(byId("quantization").value ? { quantization: byId("quantization").value } : {}),
      ...(byId("rope_alpha").value ? { rope_alpha: byId("rope_alpha").valueAsNumber } : {}),
    }),
    template: () => (byId("template").value ? { template: byId("template").value } : {}),
    system: () => byId("system").value.trim(),
    /** Returns false and shows the field if a value cannot be used; `isConversation`: the tools are sent too. */
    check: ({ isConversation = false } = {}) => {
      const wrong = inputs().find((input) => !input.validity.valid || (INTEGERS.includes(input.id) && !/^-?\d*$/.test(input.value)))
        ?? form.wrong(isConversation);
      if (wrong) document.querySelector(".settings").open = true;
      wrong?.closest("details")?.setAttribute("open", "");
      return !wrong || (wrong.reportValidity(), false);
    },
  };
}
