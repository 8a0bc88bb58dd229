"""Settings found by trying: servers are started, asked as they will be, and compared side by side.

    search      which change to try next, and whether to keep it; knows no server
    space       the changes worth trying on a machine
    figures     what was measured, and when one is better than another by more than noise
    bench       compares two choices by real servers in turn, of `servers` and `client`
    outcome     the settings file that is written at the end, by `toml`

Imports: `errors`, `images`, `settings`, `settings_file`.
"""
