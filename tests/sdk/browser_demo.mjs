// Headless Chromium on /demo: connect, subscribe, publish, see the own message and its latency, hear a backend, in both
// encodings; recovery after a disconnect; nothing from another host, no error in the console.
import assert from 'node:assert/strict';
import { CONTROL_URL, apiPublish, run } from './common.mjs';
import { openDemo } from './demo_page.mjs';

const demo = await openDemo();
const isNumber = (text) => /^[0-9]+(\.[0-9]+)?$/.test(text);

async function exchange(encoding) {
  const channel = `browser-${encoding}`;
  await demo.connect(encoding);
  await demo.subscribe(channel);
  await demo.publish(`from the page in ${encoding}`);
  await demo.sees(`from the page in ${encoding}`);
  await apiPublish(channel, { text: `from a backend to ${encoding}` });
  await demo.sees(`from a backend to ${encoding}`);
}

await run([
  ['the page loads from here alone', async () => {
    const hosts = await demo.page.evaluate(() => performance.getEntriesByType('resource').map((entry) => new URL(entry.name).host));
    assert.deepEqual(hosts.filter((host) => host !== new URL(CONTROL_URL).host), []);
  }],
  ['connect, subscribe, publish and receive in JSON', () => exchange('json')],
  ['latency', async () => {
    await demo.page.click('#measure');
    await demo.shows('samples', (text) => Number(text) >= 10, 'ten samples');
    await demo.page.click('#measure');
    for (const id of ['p50', 'p99', 'last']) await demo.shows(id, isNumber, `${id} is a number`);
    assert.ok(Number(await demo.shows('p50', isNumber, 'p50')) < 1_000, 'under a second on loopback');
    await demo.screenshot('demo-json');
  }],
  ['recovery after a disconnect', async () => {
    await demo.disconnect();
    await apiPublish('browser-json', { text: 'while the page was away' });
    await demo.connect('json');
    await demo.sees('while the page was away');
    await demo.shows('recovered', (text) => text.startsWith('yes'), 'recovered');
    await demo.shows('gaps', (text) => text === '0', 'no gap');
  }],
  ['connect, subscribe, publish and receive in Protobuf', async () => {
    await demo.disconnect();
    await demo.open();
    await exchange('protobuf');
    await demo.screenshot('demo-protobuf');
  }],
  ['no error in the console', async () => {
    assert.deepEqual(demo.errors, []);
    await demo.close();
  }],
]);
