// Writes the snippets of the requests in a JSON file: `node snippets.mjs MODULE FILE URL`.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [module, file, url] = process.argv.slice(2);
const { snippets } = await import(pathToFileURL(module).href);
const found = JSON.parse(readFileSync(file, "utf8")).map((request) => snippets(request, { url, needsKey: true }));
process.stdout.write(JSON.stringify(found));
