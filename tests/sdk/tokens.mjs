// Tokens with npm `centrifuge`, JSON or Protobuf (argument 1): connect, refresh and expiry of connections and of
// subscriptions. Tokens are HS256; the server ends what has expired one second ago (limits.expired_grace_ms).
import assert from 'node:assert/strict';
import { ENCODINGS, WS_URL, connected, connectedAs, nowS, refused, run, sleep, subscribed, token, until } from './common.mjs';

const encoding = process.argv[2];
const { make, read } = ENCODINGS[encoding];
const HOUR = 3600;
const never = () => new Promise(() => {});
const long = (claims) => token({ exp: nowS() + HOUR, ...claims });
const channel = (name) => `ticket:${name}-${encoding}`;

/// A client that has begun to connect, with what became of it.
function begun(options) {
  const client = make(WS_URL, { minReconnectDelay: 100, maxReconnectDelay: 500, ...options });
  client.log = { connecting: [], connected: [], disconnected: [] };
  for (const name of Object.keys(client.log)) client.on(name, (ctx) => client.log[name].push(ctx));
  client.connect();
  return client;
}

const alice = await connectedAs(encoding, 'alice');

await run([
  ['a forged token ends the connection for good', async () => {
    for (const bad of [token({ sub: 'alice' }, 'another secret'), 'no token at all', `${token({ sub: 'alice' })}x`]) {
      const client = begun({ token: bad });
      await until(() => client.log.disconnected.length > 0, 'told so');
      assert.equal(client.log.disconnected[0].code, 3500);
      assert.equal(client.state, 'disconnected');
    }
  }],
  ['an expired token is renewed at connect', async () => {
    let asked = 0;
    const getToken = async () => { asked += 1; return long({ sub: 'bob' }); };
    const client = begun({ token: token({ sub: 'bob', exp: nowS() - 60 }), getToken });
    await until(() => client.log.connected.length > 0, 'connected');
    assert.equal(asked, 1);
    client.disconnect();
  }],
  ['refreshed in time, the connection stays', async () => {
    let asked = 0;
    const getToken = async () => { asked += 1; return long({ sub: 'bob' }); };
    const client = begun({ token: token({ sub: 'bob', exp: nowS() + 2 }), getToken });
    await until(() => asked === 1, 'a new token is asked for');
    // Beyond the end of the first token and the second of grace.
    await sleep(3000);
    assert.deepEqual([client.log.connected.length, client.log.disconnected.length, client.state], [1, 0, 'connected']);
    assert.equal(asked, 1);
    client.disconnect();
  }],
  ['not refreshed, it is closed with 3005', async () => {
    const client = begun({ token: token({ sub: 'bob', exp: nowS() + 2 }), getToken: never });
    await until(() => client.log.connecting.some(({ code }) => code === 3005), 'closed as expired');
    client.disconnect();
  }],
  ['a refresh with a forged token ends it', async () => {
    const getToken = async () => token({ sub: 'bob' }, 'another secret');
    const client = begun({ token: token({ sub: 'bob', exp: nowS() + 2 }), getToken });
    await until(() => client.log.disconnected.length > 0, 'told so');
    assert.equal(client.log.disconnected[0].code, 3500);
  }],
  ['subscription tokens', async () => {
    assert.equal(await refused(alice, channel('room')), 103);
    assert.equal(await refused(alice, channel('room'), { token: token({ sub: 'alice', channel: channel('room') }, 'another secret') }), 103);
    const good = long({ sub: 'alice', channel: channel('room'), info: { role: 'host' } });
    const sub = await subscribed(alice, encoding, channel('room'), { token: good });
    const { clients } = await sub.presence();
    const [info] = Object.values(clients);
    assert.deepEqual([info.user, read(info.chanInfo)], ['alice', { role: 'host' }]);
    // Somebody else's, and another channel's, are an attempt to cheat.
    for (const claims of [{ sub: 'bob', channel: channel('room') }, { sub: 'carol', channel: channel('other') }]) {
      const client = begun({ token: long({ sub: 'carol' }) });
      client.newSubscription(channel('room'), { token: long(claims) }).subscribe();
      await until(() => client.log.disconnected.length > 0, 'ended');
      assert.equal(client.log.disconnected[0].code, 3500);
    }
  }],
  ['an expired subscription token is renewed', async () => {
    let asked = 0;
    const claims = { sub: 'alice', channel: channel('renewed') };
    const getToken = async () => { asked += 1; return long(claims); };
    await subscribed(alice, encoding, channel('renewed'), { token: token({ ...claims, exp: nowS() - 60 }), getToken });
    assert.equal(asked, 1);
  }],
  ['a subscription refreshed in time stays, another ends with 2501', async () => {
    const short = (name) => token({ sub: 'alice', channel: channel(name), exp: nowS() + 2 });
    let asked = 0;
    const getToken = async () => { asked += 1; return long({ sub: 'alice', channel: channel('stays') }); };
    const stays = await subscribed(alice, encoding, channel('stays'), { token: short('stays'), getToken });
    let given = 0;
    const subscribing = [];
    const ends = alice.newSubscription(channel('ends'), { token: short('ends'), getToken: () => { given += 1; return never(); } });
    ends.on('subscribing', (ctx) => subscribing.push(ctx.code));
    ends.subscribe();
    await until(() => subscribing.includes(2501), 'ended as expired');
    await until(() => asked === 1, 'the other one was refreshed');
    assert.ok(given > 0);
    await sleep(1500);
    assert.deepEqual([stays.events.length, stays.state], [1, 'subscribed']);
    assert.equal(alice.state, 'connected');
  }],
]);
