// Calls functions of a module without a page: `node call.mjs MODULE FILE`, where FILE has a JSON list of [name, ...arguments].
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [path, file] = process.argv.slice(2);
const module = await import(pathToFileURL(path).href);
const results = JSON.parse(readFileSync(file, "utf8")).map(([name, ...given]) => module[name](...given) ?? null);
process.stdout.write(JSON.stringify(results.map((result) => (result instanceof URLSearchParams ? result.toString() : result))));
