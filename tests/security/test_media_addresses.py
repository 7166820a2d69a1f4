"""Which URLs and addresses a picture may come from: the table of ways into a network that were tried on others."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.media.addresses import is_allowed, parse_media_url
from server.protocol.errors import ApiError


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "169.254.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "192.0.2.1",
        "198.18.0.1",
        "203.0.113.5",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "192.88.99.1",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "fe80::1",
        "fe80::1%1",
        "fc00::1",
        "fd00:ec2::254",
        "fec0::1",
        "ff02::1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "2001:db8::1",
        "100::1",
    ],
)
def test_addresses_that_lead_inside_are_refused(address):
    assert not is_allowed(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_public_addresses_are_allowed(address):
    assert is_allowed(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.9.9", "::1", "fc00::1"])
def test_private_addresses_open_where_a_setting_says_so(address):
    assert is_allowed(ipaddress.ip_address(address), allow_private=True)


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "fe80::1",
        "fd00:ec2::254",
        "168.63.129.16",
        "100.100.100.200",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "64:ff9b::a9fe:a9fe",
    ],
)
def test_metadata_and_multicast_stay_shut_even_then(address):
    assert not is_allowed(ipaddress.ip_address(address), allow_private=True)


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://127.1/",
        "http://0177.0.0.1/",
        "http://127.0.0.01/",
        "http://1.2.3.4.5/",
        "http://127.0.0.1./",
        "http://256.1.1.1/",
        "http://user@example.org/",
        "http://user:pw@example.org/",
        "http://example.org@127.0.0.1/",
        "http://@host/",
        "http://example.org\\@127.0.0.1/",
        "http:\\\\example.org/",
        "http://example.org\\.evil/",
        "http:/example.org/",
        "http:example.org",
        "//example.org/",
        "http:///path",
        "http://",
        "http://:80/",
        "http://example.org:/",
        "http://example.org:0/",
        "http://example.org:99999/",
        "http://example.org:80a/",
        "http://example.org:-1/",
        "http://exa mple.org/",
        "http://example.org/a b",
        "http://example.org/\r\nHost: x",
        "http://example.org/\x00",
        "\thttp://example.org/",
        " http://example.org/",
        "http://example.org/ü",
        "http://exämple.org/",
        "http://%31%32%37.0.0.1/",
        "http://[::1%25eth0]/",
        "http://[::1",
        "http://::1/",
        "http://[127.0.0.1]/",
        "http://[v1.x]/",
        "http://-bad.org/",
        "http://bad-.org/",
        "http://a..b/",
        "http://.a/",
        "http://a,b/",
        "file:///etc/passwd",
        "ftp://example.org/",
        "gopher://example.org/",
        "dict://example.org/",
        "jar:http://x!/",
        "javascript:alert(1)",
        "HTTPS",
        "",
        "http://" + "a" * 64 + ".org/",
        "http://example.org/" + "a" * 5000,
    ],
)
def test_urls_that_can_be_read_in_two_ways_are_refused(url):
    with pytest.raises(ApiError) as caught:
        parse_media_url(url)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("url", "host", "port", "target"),
    [
        ("http://example.org", "example.org", 80, "/"),
        ("HTTPS://Example.ORG/a%20b?c=d&e=%2F#part", "example.org", 443, "/a%20b?c=d&e=%2F"),
        ("http://example.org.:8080/x", "example.org.", 8080, "/x"),
        ("http://1.2.3.4/x", "1.2.3.4", 80, "/x"),
        ("http://[2606:4700::1]:81/x", "2606:4700::1", 81, "/x"),
        ("https://xn--exmple-cua.org/a_b-c.png", "xn--exmple-cua.org", 443, "/a_b-c.png"),
        ("https://a_bucket.storage.example.org/o", "a_bucket.storage.example.org", 443, "/o"),
    ],
)
def test_plain_urls_are_read_as_they_are(url, host, port, target):
    parsed = parse_media_url(url)
    assert (parsed.host, parsed.port, parsed.target) == (host, port, target)


@given(st.text(max_size=60))
def test_any_text_is_either_read_or_refused(text):
    for url in (text, "http://" + text, "https://example.org/" + text):
        try:
            parsed = parse_media_url(url)
        except ApiError as error:
            assert error.status == 400
        else:
            assert parse_media_url(parsed.text).host == parsed.host


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_alike_in_its_mapped_form(address):
    mapped = ipaddress.IPv6Address(f"::ffff:{address}")
    assert is_allowed(mapped) == is_allowed(address)
