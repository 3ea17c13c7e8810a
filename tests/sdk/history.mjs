// History with npm `centrifuge`, JSON or Protobuf (argument 1): limit, since, reverse, 0, -1, and the errors 103, 108, 112.
import assert from 'node:assert/strict';
import { ENCODINGS, apiCount, connected, run, subscribed } from './common.mjs';

const encoding = process.argv[2];
const { read } = ENCODINGS[encoding];
const channel = `log:${encoding}`;
const alice = await connected(encoding);
let epoch;

const page = async (options) => {
  const { publications, offset, epoch: own } = await alice.history(channel, options);
  assert.deepEqual([offset, own], [15, epoch]);
  for (const publication of publications) assert.equal(read(publication.data), publication.offset);
  return publications.map((publication) => publication.offset);
};

await run([
  ['only the position', async () => {
    await apiCount(channel, 15);
    const top = await alice.history(channel, { limit: 0 });
    assert.deepEqual([top.offset, top.publications], [15, []]);
    assert.ok(top.epoch.length > 0);
    epoch = top.epoch;
  }],
  ['from the oldest kept', async () => {
    assert.deepEqual(await page({ limit: 3 }), [6, 7, 8]);
    assert.deepEqual(await page({ limit: -1 }), [6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    assert.deepEqual(await page({ limit: 1000 }), [6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
  }],
  ['since', async () => {
    assert.deepEqual(await page({ limit: 2, since: { offset: 8, epoch } }), [9, 10]);
    assert.deepEqual(await page({ limit: -1, since: { offset: 13, epoch } }), [14, 15]);
    assert.deepEqual(await page({ limit: -1, since: { offset: 15, epoch } }), []);
  }],
  ['reverse', async () => {
    assert.deepEqual(await page({ limit: 3, reverse: true }), [15, 14, 13]);
    assert.deepEqual(await page({ limit: 2, since: { offset: 12, epoch }, reverse: true }), [11, 10]);
  }],
  ['walked in pages', async () => {
    const seen = [];
    for (let since = { offset: 5, epoch }; ;) {
      const offsets = await page({ limit: 4, since });
      if (offsets.length === 0) break;
      seen.push(...offsets);
      since = { offset: offsets.at(-1), epoch };
    }
    assert.deepEqual(seen, [6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
  }],
  ['errors', async () => {
    await assert.rejects(alice.history(channel, { limit: 1, since: { offset: 8, epoch: 'another' } }), { code: 112 });
    await assert.rejects(alice.history('plain:x', { limit: 1 }), { code: 108 });
    await assert.rejects(alice.history(`minutes:${encoding}`, { limit: 1 }), { code: 103 });
    await assert.rejects(alice.history('no-such-namespace:x', { limit: 1 }), { code: 102 });
    // Its subscribers may.
    const sub = await subscribed(alice, encoding, `minutes:${encoding}`);
    assert.deepEqual((await sub.history({ limit: 1 })).publications, []);
  }],
]);
