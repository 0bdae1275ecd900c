// Scores the golden pairs of an exported `gguf` folder with node-llama-cpp; one line of JSON for each file.
//     node node_llama_cpp.mjs FOLDER NODE_MODULES
import fs from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const [folder, modules] = process.argv.slice(2);
const entry = path.join(modules, "node-llama-cpp");
const {getLlama} = await import(pathToFileURL(path.join(entry, "dist", "index.js")).href);
const version = JSON.parse(fs.readFileSync(path.join(entry, "package.json"))).version;
const contract = JSON.parse(fs.readFileSync(path.join(folder, "rankwright.json")));
const rows = fs.readFileSync(path.join(folder, "golden.jsonl"), "utf8").trim().split("\n").map((line) => JSON.parse(line));
const gate = rows.filter((row) => row.gate);
// It tokenises template, query and document apart: the same ids only where they stand between control tokens.
const exact = ["portable", "zerank"].includes(contract.mode);
// Keys and values are f16 here, which alone costs some 1e-3; the weights' rounding comes on top.
const limits = {f32: 5e-3, f16: 1e-2, bf16: 6e-2, q8_0: 0.15};

const llama = await getLlama({gpu: false, build: "never"});
// Without a pair nothing would be proven.
let failed = !gate.length || !fs.readdirSync(folder).some((name) => name.endsWith(".gguf"));
for (const name of fs.readdirSync(folder).filter((name) => name.endsWith(".gguf")).sort()) {
    const kind = name.replace(/.*-(\w+)\.gguf$/, "$1");
    const model = await llama.loadModel({modelPath: path.resolve(folder, name)});
    const context = await model.createRankingContext({contextSize: contract.max_tokens + 8, threads: 1});
    let worst = 0;
    for (const row of gate)
        worst = Math.max(worst, Math.abs((await context.rank(row.query, row.document)) - row.probability));
    await context.dispose();
    await model.dispose();
    failed ||= exact && !(worst < limits[kind]);
    const note = exact ? {} : {note: `not exact: the frame ${contract.mode} is tokenised as one text`};
    console.log(JSON.stringify({engine: "node-llama-cpp", version, target: `gguf ${kind}`,
        max_d_probability: worst, rows: gate.length, ...note}));
}
process.exit(failed ? 1 : 0);
