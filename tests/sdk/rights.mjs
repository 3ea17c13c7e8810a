// Who may do what, with npm `centrifuge`, JSON or Protobuf (argument 1): options of namespaces, private channels ($),
// user-limited channels (#), for anonymous clients, users and subscribers. What is refused ends nothing.
import assert from 'node:assert/strict';
import { ENCODINGS, apiPublish, connected, connectedAs, refused, run, subscribed, token, until } from './common.mjs';

const encoding = process.argv[2];
const { write } = ENCODINGS[encoding];
const anonymous = await connected(encoding);
const alice = await connectedAs(encoding, 'alice');
const carol = await connectedAs(encoding, 'carol');
const DENIED = { code: 103 };

await run([
  ['users only', async () => {
    const channel = `members:${encoding}`;
    assert.equal(await refused(anonymous, channel), 103);
    await assert.rejects(anonymous.publish(channel, write(1)), DENIED);
    await assert.rejects(anonymous.history(channel, { limit: 1 }), DENIED);
    await assert.rejects(anonymous.presence(channel), DENIED);
    const sub = await subscribed(alice, encoding, channel);
    await carol.publish(channel, write('from carol'));
    await until(() => sub.seen.length === 1, 'carol may');
    assert.equal(sub.seen[0].info.user, 'carol');
    assert.equal((await carol.history(channel, { limit: -1 })).publications.length, 1);
    assert.equal(Object.keys((await carol.presence(channel)).clients).length, 1);
  }],
  ['subscribers only', async () => {
    const channel = `room:rights-${encoding}`;
    await assert.rejects(alice.publish(channel, write(1)), DENIED);
    const sub = await subscribed(alice, encoding, channel);
    await sub.publish(write(2));
    await until(() => sub.seen.length === 1, 'a subscriber may');
    sub.unsubscribe();
    // The unsubscribe is ahead of it on the same connection.
    await assert.rejects(alice.publish(channel, write(3)), DENIED);
  }],
  ['backends only', async () => {
    for (const client of [anonymous, alice]) {
      assert.equal(await refused(client, `backend:${encoding}`), 103);
      const channel = `backend:${encoding}`;
      assert.equal(await refused(client, channel, { token: token({ sub: client === alice ? 'alice' : '', channel }) }), 103);
      await assert.rejects(client.publish(channel, write(1)), DENIED);
      await assert.rejects(client.history(channel, { limit: 1 }), DENIED);
    }
  }],
  ['private channels', async () => {
    for (const channel of [`$secret-${encoding}`, `log:$secret-${encoding}`]) {
      assert.equal(await refused(alice, channel), 103);
      await assert.rejects(alice.publish(channel, write(1)), DENIED);
      await subscribed(alice, encoding, channel, { token: token({ sub: 'alice', channel }) });
      await apiPublish(channel, 'psst');
      await until(() => alice.getSubscription(channel).seen.length === 1, 'with a token');
      assert.equal(await refused(carol, channel), 103);
    }
  }],
  ['user-limited channels', async () => {
    for (const channel of [`${encoding}#alice,bob`, `log:${encoding}#bob,alice`, `backend:${encoding}#alice`]) {
      await subscribed(alice, encoding, channel);
      for (const other of [carol, anonymous]) {
        assert.equal(await refused(other, channel), 103);
        await assert.rejects(other.publish(channel, write(1)), DENIED);
      }
    }
    for (const channel of [`${encoding}#`, `${encoding}#alicea`, `${encoding}#carol,`]) {
      assert.equal(await refused(alice, channel), 103, channel);
      assert.equal(await refused(anonymous, channel), 103, channel);
    }
  }],
  ['refusals end nothing', async () => {
    for (const client of [anonymous, alice, carol]) assert.equal(client.state, 'connected');
  }],
]);
