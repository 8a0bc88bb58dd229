/**
 * Name the class of image files, and say how similar each is to the first, by the embeddings of the model.
 *
 *     node dist/main.js [--url URL] IMAGE...
 *
 * A key for the service is taken from DAT_CLIENT_API_KEY. Exit status 1 where the service refused, with its reason.
 */

import { openAsBlob } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { parseArgs } from 'node:util';

import { createClient, type Client } from './client/client/index.js';
import { classify, type ClassifiedImage, type FeaturesErrors, type Problem } from './client/index.js';
import { retrying } from './retries.js';

const TRIES = 5;

/** Return the classes of image files, which one request carries as base64 in JSON; a bad one refuses the request. */
async function classified(client: Client, paths: string[]): Promise<ClassifiedImage[]> {
  const images = await Promise.all(paths.map((path) => readFile(path, 'base64')));
  const { data, error } = await classify({ client, body: { images }, query: { top_k: 1 } });
  if (!data) throw failure(error);
  return data.results.filter((result) => 'predictions' in result);
}

/** Return the embedding of an image file, of length 1. The file is the body, and the answer the bytes of the numbers. */
async function embedded(client: Client, path: string): Promise<Float32Array> {
  const { data, error } = await client.post<{ 200: ArrayBuffer }, FeaturesErrors>({
    url: '/v1/features',
    query: { outputs: ['embedding'], normalize: true },
    body: await openAsBlob(path),
    bodySerializer: null,
    headers: { 'Content-Type': 'application/octet-stream', Accept: 'application/octet-stream' },
    parseAs: 'arrayBuffer',
  });
  if (!data) throw failure(error);
  return new Float32Array(data);
}

/** Return what the service, or the way to it, had against a request. */
function failure(error: Problem | Error | undefined): Error {
  if (error instanceof Error) return error;
  return new Error(error ? `${error.code}: ${error.detail} (request ${error.request_id})` : 'no answer');
}

function product(a: Float32Array, b: Float32Array): number {
  return a.reduce((sum, value, index) => sum + value * (b[index] ?? NaN), 0);
}

async function main(): Promise<void> {
  const { values, positionals: paths } = parseArgs({
    options: { url: { type: 'string', default: 'http://127.0.0.1:8000' } },
    allowPositionals: true,
  });
  const client = createClient({ baseUrl: values.url, auth: process.env.DAT_CLIENT_API_KEY, fetch: retrying(TRIES) });
  const results = await classified(client, paths);
  const embeddings = await Promise.all(paths.map((path) => embedded(client, path)));
  for (const { index, predictions } of results) {
    const [path, first, own] = [paths[index], embeddings[0], embeddings[index]];
    const best = predictions[0];
    if (!path || !first || !own || !best) throw new Error('the answer does not fit the request');
    console.log(`${basename(path)}: ${best.label} ${best.score.toFixed(4)}, similarity ${product(first, own).toFixed(4)}`);
  }
}

main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
