// Settings of the answer's form: JSON, tools, thinking. Read from the form, checked while a person types, written as fields of a request.

import { readSchema, readTools } from "./playground-json.js";
import { byId, element, fill } from "./page.js";

const FIELDS = ["response_format", "schema", "tools", "tool_choice", "enable_thinking"];
const NAMED = "function:";
const TOOL = '{"type": "function", "function": {"name": …}}';

const EXAMPLE_TOOLS = [{
  type: "function",
  function: {
    name: "weather", description: "Weather of a city on the next days",
    parameters: { type: "object", properties: { city: { type: "string", maxLength: 40 }, days: { type: "integer", minimum: 1, maximum: 9 } }, required: ["city", "days"], additionalProperties: false },
  },
}];
const EXAMPLE_SCHEMA = {
  type: "object", properties: { title: { type: "string", maxLength: 60 }, year: { type: "integer" } }, required: ["title", "year"], additionalProperties: false,
};

/** Returns the settings; `onChange` is called after a change by a script. */
export function formSettings(texts, onChange) {
  const format = () => byId("response_format").value;
  const schema = () => readSchema(byId("schema").value);
  const tools = () => readTools(byId("tools").value);

  function show(id, problem) {
    const field = byId(id);
    const text = problem ? fill(texts[problem.key], { example: TOOL, ...problem }) : "";
    field.setCustomValidity(text);
    field.setAttribute("aria-invalid", String(Boolean(problem)));
    byId(`${id}-problem`).textContent = text;
  }

  function offerFunctions(names, chosen) {
    const choice = byId("tool_choice");
    choice.querySelectorAll("[data-named]").forEach((option) => option.remove());
    choice.append(...names.map((name) => element("option", { value: NAMED + name, "data-named": true }, fill(texts.onlyFunction, { name }))));
    choice.value = [...choice.options].some((option) => option.value === chosen) ? chosen : "auto";
    byId("tool_choice-field").hidden = names.length === 0;
  }

  function update(choice = byId("tool_choice").value) {
    const isSchema = format() === "json_schema";
    byId("schema-field").hidden = !isSchema;
    show("schema", isSchema && byId("schema").value.trim() ? schema().problem : null);
    const found = tools();
    show("tools", found.problem);
    if (!found.problem) offerFunctions(found.value.map((tool) => tool.function.name), choice);
    for (const id of ["schema", "tools"]) byId(`${id}-example`).hidden = byId(id).value !== "";
  }

  for (const [id, example] of [["schema", EXAMPLE_SCHEMA], ["tools", EXAMPLE_TOOLS]]) {
    byId(`${id}-example`).addEventListener("click", () => {
      byId(id).value = JSON.stringify(example, null, 2);
      update();
      onChange();
      byId(id).focus();
    });
  }

  byId("answer-form").addEventListener("input", () => update());

  function toolFields() {
    const found = tools().value ?? [];
    if (!found.length) return {};
    const choice = byId("tool_choice").value;
    if (choice === "auto") return { tools: found };
    const named = choice.startsWith(NAMED) && { type: "function", function: { name: choice.slice(NAMED.length) } };
    return { tools: found, tool_choice: named || choice };
  }

  return {
    values: () => Object.fromEntries(FIELDS.map((id) => [id, byId(id).value])),
    restore(values) {
      for (const id of FIELDS) byId(id).value = values[id] ?? byId(id).value;
      update(values.tool_choice ?? "auto");
    },
    /** True if a setting differs from what the API does by itself. */
    isUsed: () => format() !== "" || byId("tools").value.trim() !== "" || byId("enable_thinking").value !== "",
    /** The form of each output, for any request. */
    output() {
      if (format() === "json_object") return { response_format: { type: "json_object" } };
      if (format() !== "json_schema") return {};
      return { response_format: { type: "json_schema", json_schema: { name: "answer", schema: schema().value } } };
    },
    /** Tools and variables of the model's template, for conversations. */
    conversation() {
      const thinking = byId("enable_thinking").value;
      return { ...toolFields(), ...(thinking ? { chat_template_kwargs: { enable_thinking: thinking === "true" } } : {}) };
    },
    /** Returns the field whose JSON cannot be used, undefined if all can; `isConversation`: the tools are sent too. */
    wrong(isConversation) {
      if (format() === "json_schema") show("schema", schema().problem);
      return [format() === "json_schema" && "schema", isConversation && "tools"].filter(Boolean).map(byId).find((field) => !field.validity.valid);
    },
  };
}
