// Files that people drop or choose, as the models that they become: `{name, files: [{file, path}]}`.

const MODEL_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$/;
const JUNK = /(^|\/)(\.DS_Store|Thumbs\.db|__MACOSX|\.git|\.cache)(\/|$)/;
const SUFFIX = /\.(zip|gguf|safetensors|bin|pth|model|json)$/i;

/** Returns a name that a model may have, made from the name of a file or folder. */
export function modelName(text) {
  const plain = text.replace(SUFFIX, "").replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").replace(/-+$/, "").slice(0, 96);
  return MODEL_NAME.test(plain) ? plain : "model";
}

const entries = (reader) => new Promise((resolve, reject) => reader.readEntries(resolve, reject));
const fileOf = (entry) => new Promise((resolve, reject) => entry.file(resolve, reject));

async function filesOf(folder, prefix = "") {
  const found = [];
  const reader = folder.createReader();
  // a reader returns a part of the entries with each call, and none at the end
  for (let part = await entries(reader); part.length; part = await entries(reader)) {
    for (const entry of part) {
      const path = prefix + entry.name;
      if (JUNK.test(path)) continue;
      if (entry.isDirectory) found.push(...await filesOf(entry, `${path}/`));
      else found.push({ file: await fileOf(entry), path });
    }
  }
  return found;
}

/** Groups single files: a zip archive or a GGUF file is a model of its own, all others together are one. */
function groups(files) {
  const alone = files.filter(({ name }) => /\.(zip|gguf)$/i.test(name));
  const together = files.filter((file) => !alone.includes(file) && !JUNK.test(file.name));
  const found = alone.map((file) => ({ name: modelName(file.name), files: [{ file, path: file.name }] }));
  if (together.length) {
    const largest = together.reduce((one, other) => (other.size > one.size ? other : one));
    found.push({ name: modelName(largest.name), files: together.map((file) => ({ file, path: file.name })) });
  }
  return found;
}

/** Returns the models in what was dropped; each folder is one. */
export async function dropped(transfer) {
  // the list of items is empty after the first await
  const items = [...transfer.items].filter(({ kind }) => kind === "file");
  const found = items.map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  const models = [];
  const files = [];
  for (const entry of found) {
    if (entry instanceof File) files.push(entry);
    else if (entry?.isFile) files.push(await fileOf(entry));
    else if (entry) models.push({ name: modelName(entry.name), files: await filesOf(entry) });
  }
  return [...models, ...groups(files)].filter((model) => model.files.length);
}

/** Returns the models in the files of an input element. */
export function chosen(list) {
  const files = [...list].filter((file) => !JUNK.test(file.webkitRelativePath));
  const inFolder = files.filter((file) => file.webkitRelativePath);
  const found = groups(files.filter((file) => !file.webkitRelativePath));
  if (inFolder.length) {
    const [folder] = inFolder[0].webkitRelativePath.split("/");
    found.push({
      name: modelName(folder),
      files: inFolder.map((file) => ({ file, path: file.webkitRelativePath.slice(folder.length + 1) })),
    });
  }
  return found;
}
