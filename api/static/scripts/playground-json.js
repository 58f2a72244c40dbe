// JSON that a person writes into a field. Needs no page, so that tests can run it.

/** Returns the place in a message of JSON.parse as `{line, column}`; null if it has none. */
function placeOf(message, text) {
  const named = /line (\d+) column (\d+)/.exec(message);
  if (named) return { line: Number(named[1]), column: Number(named[2]) };
  const counted = /position (\d+)/.exec(message);
  const before = counted ? text.slice(0, Number(counted[1])) : /end of/i.test(message) ? text : null;
  if (before === null) return null;
  const lines = before.split("\n");
  return { line: lines.length, column: lines.at(-1).length + 1 };
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** Reads JSON: `{value}`, or `{problem}` with `key`, the name of its text, and the place of the error. */
function read(text) {
  try {
    return { value: JSON.parse(text) };
  } catch ({ message }) {
    const place = placeOf(message, text);
    return { problem: place ? { key: "notJsonAt", ...place } : { key: "notJson" } };
  }
}

/** Reads a JSON schema, which is an object. */
export function readSchema(text) {
  if (!text.trim()) return { problem: { key: "noSchema" } };
  const found = read(text);
  return found.problem || isObject(found.value) ? found : { problem: { key: "schemaForm" } };
}

const isTool = (tool) => isObject(tool) && tool.type === "function" && isObject(tool.function) && typeof tool.function.name === "string";

/** Reads a list of functions in OpenAI's form; nothing is an empty list. */
export function readTools(text) {
  if (!text.trim()) return { value: [] };
  const found = read(text);
  if (found.problem) return found;
  if (!Array.isArray(found.value)) return { problem: { key: "toolsForm" } };
  const wrong = found.value.findIndex((tool) => !isTool(tool));
  return wrong < 0 ? found : { problem: { key: "toolForm", number: wrong + 1 } };
}

/** Returns JSON with one part in each line; a text that is not complete JSON stays as it is. */
export function formatted(text) {
  const { value, problem } = read(text);
  return problem ? text : JSON.stringify(value, null, 2);
}
