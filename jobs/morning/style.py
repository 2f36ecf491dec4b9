"""The style of the page: readable from 390 pixels up, light or dark as the reader's system is, and on paper."""

CSS = """
:root{--ink:#1b2430;--soft:#5d6877;--paper:#f5f6f8;--card:#fff;--rule:#e1e5ea;--good:#157347;--bad:#b3261e;--warn:#9a5b00;
--model:#1f5fd0;--popularity:#c8590c;--item-cf:#0d7f74;--best:#7d8794;--without-prior:#7a3fc0;--good-paper:#e8f5ee;
--bad-paper:#fdecea;--warn-paper:#fdf3e1;--idle-paper:#eef0f3}
@media (prefers-color-scheme:dark){:root{--ink:#e4e8ee;--soft:#98a3b2;--paper:#12161c;--card:#1b2129;--rule:#2d3540;
--good:#5ec792;--bad:#ff8a80;--warn:#e8ae55;--model:#7ba8ff;--popularity:#f09a56;--item-cf:#4fc4b7;--best:#8f99a6;
--without-prior:#b893ee;--good-paper:#16291f;--bad-paper:#331a18;--warn-paper:#2e2412;--idle-paper:#222932}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
-webkit-text-size-adjust:100%}
main{max-width:1120px;margin:0 auto;padding:14px}
section,.verdict{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:16px;margin:0 0 14px;
min-width:0}
.verdict{border-left:6px solid var(--soft)}
.published{border-left-color:var(--good)}.refused,.failed{border-left-color:var(--bad)}
.unfinished{border-left-color:var(--warn)}
.day{margin:0 0 8px;color:var(--soft)}
.badge{display:inline-block;padding:1px 10px;border-radius:99px;font-weight:600;color:var(--ink);background:var(--idle-paper)}
.published .badge{color:var(--good);background:var(--good-paper)}
.refused .badge,.failed .badge{color:var(--bad);background:var(--bad-paper)}
.unfinished .badge{color:var(--warn);background:var(--warn-paper)}
h1{font-size:18px;line-height:1.4;margin:6px 0 12px;font-weight:600;overflow-wrap:anywhere}
h2{font-size:17px;margin:0 0 10px}
h3{font-size:14px;margin:16px 0 6px}
p{margin:0 0 10px;overflow-wrap:anywhere}
.note{color:var(--soft);font-size:13px}
.alarm{background:var(--bad-paper);border-radius:8px;padding:10px 12px;margin:0 0 12px}
.alarm.warn{background:var(--warn-paper)}
.alarm h3{margin:0 0 4px}.alarm ul{margin:0;padding-left:18px}.alarm li{margin:3px 0;overflow-wrap:anywhere}
code{font:12.5px/1.45 ui-monospace,Menlo,Consolas,monospace;background:var(--idle-paper);padding:1px 5px;border-radius:4px;
overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(102px,1fr));gap:8px;margin:0}
.tiles div{background:var(--paper);border-radius:8px;padding:8px 10px}
.tiles dt{font-size:12px;color:var(--soft)}.tiles dd{margin:0;font-size:18px;font-weight:600;overflow-wrap:anywhere}
.tiles small{display:block;font-size:11.5px;font-weight:400;color:var(--soft)}
nav{display:flex;flex-wrap:wrap;gap:2px 14px;margin:0 2px 14px;font-size:13px}
a{color:var(--model);text-decoration:none}a:hover{text-decoration:underline}
.cards{display:grid;gap:10px;grid-template-columns:minmax(0,1fr)}
@media (min-width:820px){main{padding:22px}.cards{grid-template-columns:repeat(2,minmax(0,1fr))}
.flow{columns:2;column-gap:14px}.flow>section{break-inside:avoid}
section,.verdict{padding:20px}h1{font-size:22px}}
.scroll{overflow-x:auto;margin:0 -4px 8px}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th,td{text-align:left;padding:5px 6px;border-bottom:1px solid var(--rule);vertical-align:top}
th{color:var(--soft);font-weight:500;font-size:12px;white-space:nowrap}
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
tbody tr:last-child td{border-bottom:0}
td small{display:block;color:var(--soft);font-size:12px}
.good{color:var(--good)}.bad{color:var(--bad)}.attention{color:var(--warn)}.soft{color:var(--soft)}
.good,.bad,.attention{font-weight:600}
.bar{display:inline-block;width:100%;min-width:60px;height:8px;border-radius:4px;background:var(--idle-paper);overflow:hidden;
vertical-align:middle}
.fill{display:block;height:100%}
figure{margin:0 0 10px}
svg{display:block;max-width:100%}svg.chart{width:100%;max-width:560px;height:auto}svg.small{overflow:visible}
svg text{fill:var(--soft);font:10.5px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
svg text.strong{fill:var(--ink);font-weight:600}
.grid,.rule{stroke:var(--rule);stroke-width:1}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}.band{opacity:.16;stroke:none}
rect.now{fill:var(--model)}rect.past{fill:var(--best);opacity:.45}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 14px;margin:0 0 4px;padding:0;font-size:12.5px;color:var(--soft)}
.key{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:6px}
details{margin:6px 0}summary{cursor:pointer;color:var(--model);font-size:13.5px}
.card{border:1px solid var(--rule);border-radius:8px;padding:10px 12px;min-width:0}
.card h3{margin:0 0 6px;display:flex;justify-content:space-between;gap:8px;align-items:baseline}
.card h3 span{font-weight:400;font-size:12px;color:var(--soft)}
.chips{margin:0 0 8px;padding:0;list-style:none;display:flex;flex-wrap:wrap;gap:4px}
.chips li{background:var(--idle-paper);border-radius:6px;padding:1px 7px;font-size:12.5px;overflow-wrap:anywhere}
.chips li.hit{background:var(--good-paper);color:var(--good)}
.label{font-size:12px;color:var(--soft);margin:0 0 3px}
.gates{list-style:none;margin:0 0 8px;padding:0}.gates li{padding:7px 0;border-bottom:1px solid var(--rule);font-size:13.5px}
.gates li:last-child{border-bottom:0}.gates small{display:block;color:var(--soft);font-size:12px}
.row{display:flex;gap:12px;align-items:baseline}.row b{flex:1;font-weight:500;overflow-wrap:anywhere}
.row span{white-space:nowrap;font-variant-numeric:tabular-nums}
footer{color:var(--soft);font-size:12.5px;padding:2px 4px 20px}
@media print{body{background:#fff}section,.verdict{break-inside:avoid;border-color:#ccc}nav{display:none}}
""" + "".join(
    f".line.{name}{{stroke:var(--{name})}}.dot.{name},.band.{name},.fill.{name},.key.{name}"
    f"{{fill:var(--{name})}}.fill.{name},.key.{name}{{background:var(--{name})}}"
    for name in ("model", "popularity", "item-cf", "best", "without-prior")
)
