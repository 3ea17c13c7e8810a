// A reload by SIGHUP as npm `centrifuge` sees it, JSON or Protobuf (argument 1): `@reload` rewrites the file (a namespace
// `fresh` comes, `chat` closes for clients that publish), and live connections and subscriptions stay.
import assert from 'node:assert/strict';
import { ENCODINGS, apiPublish, ask, connected, refused, run, subscribed, until } from './common.mjs';

const encoding = process.argv[2];
const { write } = ENCODINGS[encoding];
const alice = await connected(encoding);
let sub, reconnects = 0;
alice.on('connecting', () => { reconnects += 1; });

await run([
  ['before', async () => {
    sub = await subscribed(alice, encoding, `chat:${encoding}`);
    await sub.publish(write(1));
    await until(() => sub.seen.length === 1, 'published');
    assert.equal(await refused(alice, 'fresh:x'), 102);
  }],
  ['after', async () => {
    await ask('@reload');
    await subscribed(alice, encoding, `fresh:${encoding}`);
    await assert.rejects(sub.publish(write(2)), { code: 103 });
    await apiPublish(`chat:${encoding}`, 3);
    await until(() => sub.seen.length === 2, 'backends still may');
    assert.deepEqual([sub.seen[1].data, sub.events.length, reconnects], [3, 1, 0]);
  }],
]);
