// Classify decoded pictures with a bundle's portable graph: all that a program in another language needs.
// node classify.mjs MODEL CASES, where CASES is JSON [{file, height, width}, ...] and each file holds raw RGB bytes.
// Prints JSON: one array of probabilities for each picture.
import { readFile } from "node:fs/promises";
import { InferenceSession, Tensor } from "onnxruntime-node";

const [model, cases] = process.argv.slice(2);
const session = await InferenceSession.create(model);
const answers = [];
for (const { file, height, width } of JSON.parse(await readFile(cases, "utf8"))) {
  const image = new Tensor("uint8", new Uint8Array(await readFile(file)), [height, width, 3]);
  const { probabilities } = await session.run({ image });
  answers.push(Array.from(probabilities.data));
}
process.stdout.write(JSON.stringify(answers));
