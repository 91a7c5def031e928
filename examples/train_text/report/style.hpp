#pragma once
/// @file
/// The page's looks, beside what the pictures bring along.

namespace report {

inline constexpr const char* page_style = R"(*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;color-scheme:light dark}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1200px;margin:0 auto;padding:28px 20px 48px}
.kicker{color:var(--muted);font-size:14px;margin:0 0 6px}
h1{font-size:clamp(21px,3.4vw,32px);line-height:1.25;margin:0 0 14px;max-width:34em;
text-wrap:balance;overflow-wrap:anywhere}
h2{font-size:21px;margin:44px 0 8px}
h3{font-size:16px;margin:28px 0 6px}
p{margin:0 0 8px;max-width:52em}
.hint{color:var(--muted);font-size:14px}
.box{overflow-x:auto;border:1px solid var(--grid);border-radius:10px;margin-top:12px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:8px 12px;text-align:right;white-space:nowrap;border-top:1px solid var(--grid)}
thead th{border-top:0;background:var(--panel);font-weight:600;vertical-align:top;line-height:1.3}
th small,td small{display:block;color:var(--muted);font-weight:400;font-size:12px}
tbody th small{white-space:normal;max-width:20em}
th:first-child{text-align:left;position:sticky;left:0;background:var(--bg);z-index:1}
thead th:first-child{background:var(--panel)}
tr.best td:nth-child(2){font-weight:700}
.s{display:inline-block;width:11px;height:11px;border-radius:3px;background:currentColor;margin-right:7px;flex:none}
.two,.three,.four{display:grid;gap:18px 28px;align-items:start;margin-top:10px}
.two{grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr))}
.three{grid-template-columns:repeat(auto-fit,minmax(min(100%,290px),1fr))}
.four{grid-template-columns:repeat(auto-fit,minmax(min(100%,230px),1fr))}
.pic{display:block;width:100%;height:auto}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;list-style:none;margin:10px 0 0;padding:0;font-size:14px}
.legend li{display:flex;align-items:center}
details{border:1px solid var(--grid);border-radius:10px;margin-top:10px}
summary{cursor:pointer;padding:12px 16px;font-weight:600;list-style-position:inside}
summary small{color:var(--muted);font-weight:400;font-size:14px;margin-left:8px}
details[open] summary{border-bottom:1px solid var(--grid)}
.inside{padding:12px 16px 20px}
.inside h3:first-child{margin-top:8px}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--panel);border-radius:8px;padding:12px 14px;
margin:8px 0 0;font:13px/1.5 ui-monospace,Menlo,Consolas,monospace}
ul.plain{margin:6px 0 0;padding-left:20px}
footer{margin-top:48px;border-top:1px solid var(--grid);padding-top:14px;color:var(--muted);
font-size:14px;overflow-wrap:anywhere}
footer code{font:13px ui-monospace,Menlo,Consolas,monospace}
@media (max-width:640px){main{padding:18px 12px 36px}.inside{padding:8px 12px 16px}summary{padding:12px}
th,td{padding:7px 9px}
tbody th{white-space:normal;min-width:10.5em;overflow-wrap:anywhere}h2{margin-top:34px}}
@media print{.box{overflow:visible}}
)";

}  // namespace report
