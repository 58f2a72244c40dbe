// Uploads a file with tus-js-client, breaks off after two chunks, and resumes as another process would: by the stored address.
// node upload.cjs ENDPOINT FILE FILENAME STORE — prints a JSON object: the address, and the methods that the second part sent.

const fs = require("node:fs");
const tus = require("tus-js-client");

const [endpoint, file, filename, store] = process.argv.slice(2);

function options(more) {
  return {
    endpoint,
    chunkSize: 300_000,
    metadata: { filename },
    urlStorage: new tus.FileUrlStorage(store),
    uploadDataDuringCreation: true,
    retryDelays: null,
    ...more,
  };
}

function breakOff() {
  return new Promise((resolve, reject) => {
    let chunks = 0;
    const upload = new tus.Upload(
      fs.createReadStream(file),
      options({
        onError: reject,
        onChunkComplete: () => {
          chunks += 1;
          if (chunks === 2) upload.abort(false).then(resolve, reject);
        },
      }),
    );
    upload.start();
  });
}

function resume() {
  return new Promise((resolve, reject) => {
    const methods = [];
    const upload = new tus.Upload(
      fs.createReadStream(file),
      options({
        onError: reject,
        onBeforeRequest: (request) => methods.push(request.getMethod()),
        onSuccess: () => resolve({ url: upload.url, methods }),
      }),
    );
    upload.findPreviousUploads().then((found) => {
      upload.resumeFromPreviousUpload(found[0]);
      upload.start();
    }, reject);
  });
}

function refused(more) {
  return new Promise((resolve) => {
    const upload = new tus.Upload(fs.readFileSync(file), {
      ...options({ urlStorage: undefined, ...more }),
      onError: (error) => resolve(error.originalResponse.getStatus()),
      onSuccess: () => resolve(null),
    });
    upload.start();
  });
}

breakOff()
  .then(resume)
  .then(async (found) => ({ ...found, parallel: await refused({ parallelUploads: 2 }) }))
  .then((found) => process.stdout.write(JSON.stringify(found)))
  .catch((error) => {
    process.stderr.write(`${error.stack}\n`);
    process.exitCode = 1;
  });
