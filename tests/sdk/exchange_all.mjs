// The demo page in a browser, Node SDKs (JSON and Protobuf), the Python SDK and a backend (HTTP API) on one channel: each
// says hello, each sees all hellos.
import { spawn } from 'node:child_process';
import readline from 'node:readline';
import { ENCODINGS, apiPublish, connected, run, subscribed, until, within } from './common.mjs';
import { openDemo } from './demo_page.mjs';

const CHANNEL = 'everybody';
const MEMBERS = ['from browser', 'from node-json', 'from node-protobuf', 'from python', 'from backend'];

const hello = (member) => ({ text: `hello ${member}` });
const sub = {};
const python = spawn('.venv/bin/python', ['python_peer.py', CHANNEL, ...MEMBERS], { stdio: ['pipe', 'pipe', 'inherit'] });
const said = [];
readline.createInterface({ input: python.stdout }).on('line', (line) => said.push(line));
const pythonEnd = new Promise((resolve) => python.once('exit', resolve));
let demo;

await run([
  ['everybody subscribes', async () => {
    demo = await openDemo();
    await demo.connect();
    await demo.subscribe(CHANNEL);
    for (const encoding of Object.keys(ENCODINGS)) sub[encoding] = await subscribed(await connected(encoding), encoding, CHANNEL);
    await until(() => said.includes('READY'), 'python is subscribed');
  }],
  ['everybody publishes', async () => {
    await demo.publish('hello from browser');
    await sub.json.publish(hello('from node-json'));
    await sub.protobuf.publish(ENCODINGS.protobuf.write(hello('from node-protobuf')));
    python.stdin.write('go\n');
    await apiPublish(CHANNEL, hello('from backend'));
  }],
  ['everybody sees all', async () => {
    const complete = (texts) => MEMBERS.every((member) => texts.some((text) => text.includes(member)));
    for (const one of Object.values(sub)) await until(() => complete(one.seen.map(({ data }) => JSON.stringify(data))), 'node sees all');
    for (const member of MEMBERS) await demo.sees(member);
    if (await within(pythonEnd, 'python sees all') !== 0) throw new Error(`python: ${said.join('\n')}`);
    await demo.close();
  }],
]);
