// Scores the golden pairs of an exported `onnx` folder with transformers.js; one line of JSON for each graph.
//     node transformers_js.mjs FOLDER NODE_MODULES
import fs from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const [folder, modules] = process.argv.slice(2);
const entry = path.join(modules, "@huggingface", "transformers");
const {version, exports: entries} = JSON.parse(fs.readFileSync(path.join(entry, "package.json")));
const library = path.join(entry, entries.node.import.default ?? entries.node.import);
const {AutoModel, AutoTokenizer, Tensor, env} = await import(pathToFileURL(library).href);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder));
const name = path.basename(path.resolve(folder));

const contract = JSON.parse(fs.readFileSync(path.join(folder, "rankwright.json")));
const rows = fs.readFileSync(path.join(folder, "golden.jsonl"), "utf8").trim().split("\n").map((line) => JSON.parse(line));
const gate = rows.filter((row) => row.gate);
const tokenizer = await AutoTokenizer.from_pretrained(name);
// The end that all prompts share: encoding it alone would strip its line breaks.
const [one, other] = ["b", "c"].map((document) => tokenizer.encode("a", {text_pair: document}));
const suffix = one.slice(one.findLastIndex((id, i) => id !== other[i]) + 1);
// Its own truncation cuts the end of the prompt: a longer document is cut here, and the end kept.
const prompts = gate.map((row) => {
    const ids = tokenizer.encode(row.query, {text_pair: row.document});
    return ids.length <= contract.max_tokens ? ids : [...ids.slice(0, contract.max_tokens - suffix.length), ...suffix];
});
const idsDiffer = gate.filter((row, i) => row.token_ids.join() !== prompts[i].join()).length;

const tensor = (lists) => new Tensor("int64", BigInt64Array.from(lists.flat(), BigInt), [lists.length, lists[0].length]);
const scoreIds = async (model, lists) => {
    const width = Math.max(...lists.map((ids) => ids.length));
    const filled = (ids, with_, own) => [...Array(width - ids.length).fill(with_), ...own];
    const {logits} = await model({
        input_ids: tensor(lists.map((ids) => filled(ids, tokenizer.pad_token_id, ids))),
        attention_mask: tensor(lists.map((ids) => filled(ids, 0, ids.map(() => 1)))),
    });
    return Array.from(logits.data);
};
const sigmoid = (logit) => 1 / (1 + Math.exp(-logit));
const largest = (values) => values.reduce((most, value) => (Number.isNaN(most) || value <= most ? most : value), 0);

// Without a pair, or a graph, nothing would be proven.
let failed = idsDiffer > 0 || !gate.length || !fs.existsSync(path.join(folder, "onnx", "model.onnx"));
// fp32 is what a user gets who names no dtype (config.json says so).
for (const [file, options] of [["model.onnx", {}], ["model_quantized.onnx", {dtype: "q8"}]]) {
    if (!fs.existsSync(path.join(folder, "onnx", file))) continue;
    const model = await AutoModel.from_pretrained(name, options);
    const alone = [], batched = [];
    for (const ids of prompts) alone.push(...(await scoreIds(model, [ids])));
    for (let i = 0; i < prompts.length; i += 8) batched.push(...(await scoreIds(model, prompts.slice(i, i + 8))));
    // As its users call it: pairs in, padded by the tokenizer.
    const whole = gate.map((_, i) => i).filter((i) => prompts[i].length < contract.max_tokens);
    const asked = tokenizer(whole.map((i) => gate[i].query), {text_pair: whole.map((i) => gate[i].document), padding: true});
    const plain = Array.from((await model(asked)).logits.data);
    await model.dispose();
    const logit = largest(gate.flatMap((row, i) => [alone[i], batched[i]].map((found) => Math.abs(found - row.logit))));
    const pairs = largest(whole.map((i, k) => Math.abs(plain[k] - gate[i].logit)));
    const own = largest([...batched.map((found, i) => Math.abs(found - alone[i])), ...whole.map((i, k) => Math.abs(plain[k] - alone[i]))]);
    const probability = largest(gate.map((row, i) => Math.abs(sigmoid(alone[i]) - row.probability)));
    // 8-bit weights: roughly the logit, and the same in every batch.
    failed ||= file === "model.onnx" ? !(Math.max(logit, pairs) < 1e-4 && probability < 1e-5) : !(Math.max(logit, pairs) < 2 && own < 1e-4);
    console.log(JSON.stringify({engine: "transformers.js", version, target: `onnx ${file}`, max_d_probability: probability,
        max_d_logit: Math.max(logit, pairs), max_d_alone_batch: own, ids_differ: idsDiffer, rows: gate.length}));
}
process.exit(failed ? 1 : 0);
