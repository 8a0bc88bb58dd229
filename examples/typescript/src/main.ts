/**
 * Name the class of image files, and say how similar each is to the first, by the embeddings of the model.
 *
 *     node dist/main.js [--url URL] IMAGE...
 *
 * A key for the service is taken from DAT_CLIENT_API_KEY. Exit status 1 where the service refused, with its reason.
 */

import { openAsBlob } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { basename } from 'node:path';
import { parseArgs } from 'node:util';

import { createClient, formDataBodySerializer, type Client } from './client/client/index.js';
import { classify, listModels } from './client/index.js';
import type { ClassifiedImage, FeaturesErrors, ImageForm, Problem } from './client/index.js';
import { retrying } from './retries.js';

const TRIES = 5;
const MAX_IMAGES = 16; // of a request, unless the service takes fewer
const MAX_BYTES = 8 * 1024 * 1024;
const PART_BYTES = 256; // around an image in a body, at most

/** Return image files in groups that one request may carry, also as base64; one alone may be too large. */
async function grouped(client: Client, paths: string[]): Promise<string[][]> {
  const { data, error } = await listModels({ client });
  if (!data) throw failure(error);
  const maxImages = Math.min(MAX_IMAGES, data.limits.max_images);
  const maxBytes = Math.min(MAX_BYTES, data.limits.max_body_bytes);
  const groups: string[][] = [];
  let bytes = Infinity;
  for (const path of paths) {
    const own = Math.ceil((await stat(path)).size / 3) * 4 + PART_BYTES;
    const group = groups.at(-1);
    if (group && group.length < maxImages && bytes + own <= maxBytes) {
      group.push(path);
      bytes += own;
    } else {
      groups.push([path]);
      bytes = own;
    }
  }
  return groups;
}

/** Return the classes of image files, which one request carries as base64 in JSON; a bad one refuses the request. */
async function classified(client: Client, paths: string[]): Promise<ClassifiedImage[]> {
  const images = await Promise.all(paths.map((path) => readFile(path, 'base64')));
  const { data, error } = await classify({ client, body: { images }, query: { top_k: 1 } });
  if (!data) throw failure(error);
  return data.results.filter((result) => 'predictions' in result);
}

/** Return the embeddings of image files, of length 1. They are parts of a form; the answer is the numbers' bytes. */
async function embedded(client: Client, paths: string[]): Promise<Float32Array[]> {
  const image = await Promise.all(paths.map((path) => openAsBlob(path)));
  const { data, error } = await client.post<{ 200: ArrayBuffer }, FeaturesErrors>({
    url: '/v1/features',
    query: { outputs: ['embedding'], normalize: true },
    body: { image } satisfies ImageForm,
    ...formDataBodySerializer,
    headers: { 'Content-Type': null, Accept: 'application/octet-stream' },
    parseAs: 'arrayBuffer',
  });
  if (!data) throw failure(error);
  const [numbers, rows] = [new Float32Array(data), paths.length];
  return paths.map((_, row) => numbers.slice((numbers.length / rows) * row, (numbers.length / rows) * (row + 1)));
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
  let first: Float32Array | undefined;
  for (const group of await grouped(client, paths)) {
    const results = await classified(client, group);
    const embeddings = await embedded(client, group);
    first ??= embeddings[0];
    for (const { index, predictions } of results) {
      const [path, own, best] = [group[index], embeddings[index], predictions[0]];
      if (!path || !first || !own || !best) throw new Error('the answer does not fit the request');
      const similarity = product(first, own).toFixed(4);
      console.log(`${basename(path)}: ${best.label} ${best.score.toFixed(4)}, similarity ${similarity}`);
    }
  }
}

main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
