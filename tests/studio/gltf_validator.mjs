// Khronos glTF validator for the tests: node gltf_validator.mjs FOLDER FILE.glb ...
// FOLDER is where `npm install gltf-validator` was run. Prints one JSON object by file name.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const [folder, ...files] = process.argv.slice(2);
const validator = createRequire(resolve(folder, "package.json"))("gltf-validator");

const reports = {};
for (const file of files) {
  const report = await validator.validateBytes(new Uint8Array(readFileSync(file)), { uri: file });
  reports[file] = { ...report.issues, info: report.info };
}
process.stdout.write(JSON.stringify(reports));
