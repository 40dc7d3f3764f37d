// Runs a Node program as a cluster: `node cluster.js WORKERS PROGRAM ARGUMENTS…`.
"use strict";
const cluster = require("node:cluster");
const { resolve } = require("node:path");

const [workers, ...words] = process.argv.slice(2);
const at = words.findIndex((word) => !word.startsWith("-"));
cluster.setupPrimary({ exec: resolve(words[at]), args: words.slice(at + 1), execArgv: words.slice(0, at) });
for (let number = 0; number < Number(workers); number++) cluster.fork();
