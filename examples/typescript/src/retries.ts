/** A fetch that comes back when the service says that it should. */

import { setTimeout as pause } from 'node:timers/promises';

const COME_BACK = new Set([429, 503]);

/**
 * Return a fetch that tries again where the answer is 429 or 503, up to `tries` times in all, each time after as many
 * seconds as `Retry-After` says. The last answer is returned, whatever it is; an abort ends the wait too.
 */
export function retrying(tries: number): typeof fetch {
  return async (input, init) => {
    const request = new Request(input, init);
    for (let left = tries - 1; ; left -= 1) {
      const response = await fetch(request.clone());
      const seconds = Number(response.headers.get('Retry-After') ?? NaN);
      if (left <= 0 || !COME_BACK.has(response.status) || Number.isNaN(seconds)) return response;
      await response.body?.cancel();
      await pause(seconds * 1000, undefined, { signal: request.signal });
    }
  };
}
