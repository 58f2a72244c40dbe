// Messages of a conversation: as the API reads them, as Markdown, and while they arrive. Needs no page, so that tests can run it.

import { formatted } from "./playground-json.js";

const callOf = ({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } });

/** Returns the messages of a conversation for a request; a turn with the results of several calls becomes several messages. */
export function apiMessages(path, system = "") {
  const messages = path.flatMap(({ role, text, reasoning, tool_calls: calls, results }) => {
    if (role === "tool") return results.map(({ id, name, text: content }) => ({ role, tool_call_id: id, name, content }));
    return [{
      role, content: text,
      ...(reasoning ? { reasoning_content: reasoning } : {}),
      ...(calls?.length ? { tool_calls: calls.map(callOf) } : {}),
    }];
  });
  return [...(system ? [{ role: "system", content: system }] : []), ...messages];
}

/** Adds a piece of a stream to a reply and returns it; a job that runs again sends its text from the beginning. */
export function addPiece(reply, { offset, text, reasoning = "", reasoning_offset: reasoningOffset = 0, tool_calls: calls = [] }) {
  const points = [...reply.text]; // an offset counts code points, as in Python
  if (offset < points.length) delete reply.tool_calls;
  reply.text = points.slice(0, offset).join("") + text;
  if (reasoning) reply.reasoning = [...(reply.reasoning ?? "")].slice(0, reasoningOffset).join("") + reasoning;
  for (const { index, id, name, arguments: added } of calls) {
    reply.tool_calls ??= [];
    const known = reply.tool_calls[index];
    reply.tool_calls[index] = known && (!id || known.id === id) ? { ...known, arguments: known.arguments + added } : { id, name, arguments: added };
  }
  return reply;
}

/** Returns the text of a turn with its calls as blocks of JSON, for Markdown and for the clipboard. */
export function withCalls(text, calls) {
  const blocks = (calls ?? []).map(({ name, arguments: given }) => `\`${name}\`\n\n\`\`\`json\n${formatted(given)}\n\`\`\``);
  return [text, ...blocks].filter(Boolean).join("\n\n");
}
