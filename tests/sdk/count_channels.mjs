// npm `centrifuge` under Node counts channels: arguments are the encoding, the first channel number, how many channels,
// publications per channel. Channel names are `count-<n>`; payload k is {"n":k}.
// Prints READY when all are subscribed, then ends with 0 once every channel is complete, in order, offsets dense.
import { ENCODINGS, connected, run, until, within } from './common.mjs';

const [encoding, ...numbers] = process.argv.slice(2);
const [first, channels, perChannel] = numbers.map(Number);
const { read } = ENCODINGS[encoding];
const total = channels * perChannel;
let received = 0;
let reconnects = 0;
let failure;

await run([['count', async () => {
  const client = await connected(encoding);
  client.on('connecting', () => { reconnects += 1; });
  client.on('disconnected', ({ code, reason }) => { failure = `disconnected: ${code} ${reason}`; });
  const ready = [];
  for (let n = first; n < first + channels; n++) {
    const sub = client.newSubscription(`count-${n}`);
    let next = 0;
    sub.on('subscribed', ({ wasRecovering, recovered }) => {
      if (wasRecovering && !recovered) failure ??= `count-${n}: position lost after ${next}`;
    });
    sub.on('publication', ({ offset, data }) => {
      next += 1;
      received += 1;
      // Compare before anything is built: this runs a million times.
      if (offset !== next || read(data).n !== next) {
        failure ??= `count-${n}: expected ${next}, got offset ${offset} with ${JSON.stringify(read(data))}`;
      }
    });
    sub.subscribe();
    ready.push(sub.ready());
  }
  await within(Promise.all(ready), 'all channels subscribed');
  console.log('READY');
  let last = 0;
  let since = Date.now();
  await until(() => {
    if (received !== last) { last = received; since = Date.now(); }
    if (Date.now() - since > 60_000) failure ??= `nothing for 60 s: ${received} of ${total}`;
    return failure || received >= total;
  }, 'all publications', 3_600_000);
  // One too many would come now.
  await new Promise((resolve) => setTimeout(resolve, 300));
  if (failure || received !== total) throw new Error(failure ?? `${received} of ${total}`);
  console.log(`COMPLETE node ${encoding}: ${channels} channels, ${received} publications, in order, dense, ${reconnects} reconnects`);
}]]);
