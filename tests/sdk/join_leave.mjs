// Join and leave with npm `centrifuge`, JSON or Protobuf (argument 1): told to those who ask, with connection and user;
// nothing above `join_leave_members_max`, or one sign of change per interval.
import assert from 'node:assert/strict';
import { connectedAs, cutProxy, run, sleep, subscribed, until } from './common.mjs';

const encoding = process.argv[2];
const as = (user, options) => connectedAs(encoding, user, options);
const without = (sub, user) => sub.comings.filter((what) => what.slice(1) !== user);

await run([
  ['told to those who ask', async () => {
    const channel = `room:comings-${encoding}`;
    const alice = await subscribed(await as('alice'), encoding, channel, { joinLeave: true });
    const quiet = await subscribed(await as('quiet'), encoding, channel);
    const proxy = await cutProxy();
    const bob = await as('bob', { url: proxy.url, info: { name: 'Bob' } });
    const bobSub = await subscribed(bob, encoding, channel);
    await until(() => alice.comings.includes('+bob'), 'bob came');
    proxy.cut();
    await until(() => alice.comings.includes('-bob'), 'bob was cut');
    proxy.mend();
    await until(() => alice.comings.filter((what) => what === '+bob').length === 2, 'bob came back');
    bobSub.unsubscribe();
    await until(() => alice.comings.at(-1) === '-bob', 'bob left');
    assert.deepEqual(without(alice, 'alice'), ['+quiet', '+bob', '-bob', '+bob', '-bob']);
    assert.deepEqual(quiet.comings, []);
  }],
  ['nothing above join_leave_members_max', async () => {
    const channel = `crowd:${encoding}`;
    const watcher = await subscribed(await as('watcher'), encoding, channel);
    const subs = {};
    for (const user of ['b', 'c', 'd', 'e']) subs[user] = await subscribed(await as(user), encoding, channel);
    // Nobody waits between a leave and its push, so presence says when it has happened.
    const clients = async (expected) => {
      for (let n = 0; (await watcher.presenceStats()).numClients !== expected; n++) {
        if (n > 1000) throw new Error(`not ${expected} members`);
        await sleep(10);
      }
    };
    for (const [user, left] of [['d', 4], ['e', 3], ['c', 2]]) {
      subs[user].unsubscribe();
      await clients(left);
    }
    await until(() => watcher.comings.includes('-c'), 'c left a small channel');
    // d and e came and went where more than three were there.
    assert.deepEqual(without(watcher, 'watcher'), ['+b', '+c', '-c']);
  }],
  ['one sign of change per interval', async () => {
    const INTERVAL_MS = 500;
    const channel = `tide:${encoding}`;
    const watcher = await subscribed(await as('watcher'), encoding, channel);
    const other = await as('other');
    const start = Date.now();
    const sub = await subscribed(other, encoding, channel);
    for (let n = 0; n < 40; n++) {
      sub.unsubscribe();
      sub.subscribe();
      await sub.ready();
    }
    sub.unsubscribe();
    await until(() => watcher.comings.at(-1) === '-other', 'the newest change comes last');
    const pushes = without(watcher, 'watcher').length;
    const most = Math.ceil((Date.now() - start) / INTERVAL_MS) + 1;
    assert.ok(pushes >= 1 && pushes <= most, `${pushes} pushes of 82 changes, at most ${most}`);
  }],
]);
