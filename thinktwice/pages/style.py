"""The one style of all pages."""

from __future__ import annotations

STYLE = """
*{box-sizing:border-box}body{margin:0;background:#f4f5f7;color:#22262c;font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 20px 60px}h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:0 0 4px}
.faint{color:#6d7480;font-size:13.5px;margin:0 0 12px}.card{background:#fff;border:1px solid #e3e6ea;border-radius:10px;padding:20px 22px;margin-top:18px}
.two{display:grid;grid-template-columns:1fr 1fr;gap:18px}.two .card{min-width:0}@media(max-width:860px){.two{grid-template-columns:1fr}}
.verdict{border-left:5px solid #2f6fdb}.verdict.on{border-left-color:#3a9b6a}.verdict p{margin:6px 0}.verdict p:first-child{font-size:18px;font-weight:600}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-top:18px}
.tile{background:#fff;border:1px solid #e3e6ea;border-radius:10px;padding:12px 16px}.tile b{display:block;font-size:22px}.tile span{color:#6d7480;font-size:13px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}th,td{padding:7px 10px;text-align:right;border-bottom:1px solid #eceef1;vertical-align:top}
th:first-child,td:first-child{text-align:left}th{color:#59606b;font-weight:600}td small{display:block;color:#7a818c}tr:last-child td{border-bottom:0}
.good{color:#23804f}.bad{color:#bb3d2a}.ship{background:#f1f6ff}.tag{font-size:11px;background:#2f6fdb;color:#fff;border-radius:9px;padding:1px 8px;margin-left:6px;white-space:nowrap}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;color:#59606b;margin:4px 0 8px}.legend i{display:inline-block;width:11px;height:11px;border-radius:50%;margin-right:6px;vertical-align:-1px}
.warn{background:#fff7e8;border-color:#f0d9a8}svg{width:100%;height:auto;display:block}.scroll{overflow-x:auto}.evidence td span,.evidence td span+small,.evidence td:first-child{white-space:nowrap}
"""
