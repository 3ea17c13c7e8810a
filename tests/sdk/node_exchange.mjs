// npm `centrifuge` under Node, JSON or Protobuf build (argument 1): connect, subscribe, publish both ways, unsubscribe,
// error codes, recovery after a cut, and a restart of the server.
import assert from 'node:assert/strict';
import { ENCODINGS, apiPublish, ask, connected, cutProxy, run, sleep, subscribed, until, within } from './common.mjs';

const encoding = process.argv[2];
const { make, write } = ENCODINGS[encoding];
const channel = (name) => `node-${encoding}-${name}`;
const data = (sub) => sub.seen.map((publication) => publication.data);

let alice, bob, aliceSub, bobSub;

await run([
  ['connect', async () => {
    alice = await connected(encoding);
    bob = await connected(encoding);
  }],
  ['subscribe', async () => {
    aliceSub = await subscribed(alice, encoding, channel('chat'));
    bobSub = await subscribed(bob, encoding, channel('chat'));
    assert.equal(aliceSub.events[0].recoverable, true);
    assert.equal(aliceSub.events[0].wasRecovering, false);
    assert.ok(aliceSub.events[0].streamPosition.epoch.length > 0);
  }],
  ['publish both ways', async () => {
    await aliceSub.publish(write({ from: 'alice' }));
    await bobSub.publish(write({ from: 'bob' }));
    await apiPublish(channel('chat'), { from: 'backend' });
    for (const sub of [aliceSub, bobSub]) {
      await until(() => sub.seen.length === 3, 'three publications');
      assert.deepEqual(data(sub), [{ from: 'alice' }, { from: 'bob' }, { from: 'backend' }]);
      assert.deepEqual(sub.seen.map((publication) => publication.offset), [1, 2, 3]);
      assert.ok(sub.seen[0].info.client && sub.seen[1].info.client, 'publications of clients carry their client id');
      assert.notEqual(sub.seen[0].info.client, sub.seen[1].info.client);
      assert.equal(sub.seen[2].info, undefined);
    }
  }],
  ['payloads of every kind', async () => {
    const values = [null, true, 0, -1.5e10, '', 'ümlaut 五 \n\t"\\', [], {}, [[[]]], { a: { b: [1, '2', null] } }, 'x'.repeat(50_000)];
    const sub = await subscribed(alice, encoding, channel('payloads'));
    for (const value of values) await bob.publish(channel('payloads'), write(value));
    await until(() => sub.seen.length === values.length, 'all payloads');
    assert.deepEqual(data(sub), values);
  }],
  ['unsubscribe and subscribe again', async () => {
    const ended = new Promise((resolve) => aliceSub.once('unsubscribed', resolve));
    aliceSub.unsubscribe();
    assert.equal((await ended).code, 0);
    const before = aliceSub.seen.length;
    await bobSub.publish(write('while alice is away'));
    await until(() => bobSub.seen.length === 4, 'bob sees his own');
    await sleep(200);
    assert.equal(aliceSub.seen.length, before);
    aliceSub.subscribe();
    await within(aliceSub.ready(), 'subscribe again');
    await bobSub.publish(write('alice is back'));
    await until(() => data(aliceSub).includes('alice is back'), 'alice hears again');
  }],
  ['error codes', async () => {
    const sub = alice.newSubscription('no-such-namespace:x');
    const ended = new Promise((resolve) => sub.once('unsubscribed', resolve));
    sub.subscribe();
    assert.equal((await within(ended, 'the refusal')).code, 102);
    await assert.rejects(alice.publish('no-such-namespace:x', write(1)), { code: 102 });
    await assert.rejects(alice.rpc('nothing', write({})), (error) => [104, 108].includes(error.code));
    assert.equal(alice.state, 'connected', 'a refused command ends nothing');
  }],
  ['recovery after a cut', async () => {
    const proxy = await cutProxy();
    const carol = await connected(encoding, proxy.url);
    const sub = await subscribed(carol, encoding, channel('cut'));
    await apiPublish(channel('cut'), 0);
    await until(() => sub.seen.length === 1, 'the first one');
    for (let round = 1; round <= 3; round++) {
      proxy.cut();
      await until(() => carol.state === 'connecting', 'the cut is noticed');
      for (let n = 1; n <= 5; n++) await apiPublish(channel('cut'), round * 10 + n);
      proxy.mend();
      await until(() => sub.events.length === 1 + round, 'subscribed again');
      const { wasRecovering, recovered } = sub.events.at(-1);
      assert.deepEqual({ wasRecovering, recovered }, { wasRecovering: true, recovered: true });
      await until(() => sub.seen.length === 1 + 5 * round, 'what was missed');
    }
    await apiPublish(channel('cut'), 'live');
    await until(() => data(sub).at(-1) === 'live', 'live again');
    assert.deepEqual(data(sub), [0, 11, 12, 13, 14, 15, 21, 22, 23, 24, 25, 31, 32, 33, 34, 35, 'live']);
    assert.deepEqual(sub.seen.map((publication) => publication.offset), sub.seen.map((_, i) => i + 1));
    carol.disconnect();
    proxy.close();
  }],
  ['two hundred subscriptions in one frame', async () => {
    const dave = make(process.env.RINGWAY_WS, {});
    const subs = Array.from({ length: 200 }, (_, n) => dave.newSubscription(channel(`many-${n}`)));
    subs.forEach((sub) => sub.subscribe());
    dave.connect();
    await within(Promise.all(subs.map((sub) => sub.ready())), 'all subscribed');
    dave.disconnect();
  }],
  ['a restart of the server', async () => {
    const why = new Promise((resolve) => alice.once('connecting', resolve));
    const { epoch } = aliceSub.events.at(-1).streamPosition;
    const moved = (sub) => sub.events.at(-1).streamPosition.epoch !== epoch;
    await ask('@restart');
    const { code, reason } = await within(why, 'alice is told');
    assert.deepEqual({ code, reason }, { code: 3001, reason: 'shutdown' });
    await until(() => moved(aliceSub) && moved(bobSub), 'both subscribed to the new server');
    const { wasRecovering, recovered } = aliceSub.events.at(-1);
    assert.deepEqual({ wasRecovering, recovered }, { wasRecovering: true, recovered: false });
    await bobSub.publish(write('after the restart'));
    await until(() => data(aliceSub).at(-1) === 'after the restart', 'alice hears bob again');
  }],
]);
