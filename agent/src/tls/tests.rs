use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ED25519, date_time_ymd};

use super::*;

struct Server {
    authority: CertificateDer<'static>,
    leaf: CertificateDer<'static>,
}

fn server(name: &str) -> Server {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ED25519).unwrap()).unwrap();
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    (params.not_before, params.not_after) = (date_time_ymd(2030, 1, 1), date_time_ymd(2031, 1, 1));
    let leaf = params.signed_by(&key, &authority).unwrap();
    Server { authority: authority.der().clone(), leaf: leaf.der().clone() }
}

fn at(year: i32) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(date_time_ymd(year, 6, 1).unix_timestamp() as u64))
}

fn verify(pin: &PinnedAuthority, server: &Server, name: &str, now: UnixTime) -> Result<(), rustls::Error> {
    let name = ServerName::try_from(name).unwrap();
    pin.verify_server_cert(&server.leaf, std::slice::from_ref(&server.authority), &name, &[], now).map(|_| ())
}

#[test]
fn accepts_the_pinned_authority_for_the_right_name() {
    let server = server("pleach.example");
    verify(&PinnedAuthority::by_fingerprint(sha256(&server.authority)), &server, "pleach.example", at(2030)).unwrap();
    verify(&PinnedAuthority::known(server.authority.clone()), &server, "pleach.example", at(2030)).unwrap();
}

#[test]
fn refuses_another_fingerprint_and_says_so() {
    let server = server("pleach.example");
    let error = verify(&PinnedAuthority::by_fingerprint(Digest::new([7; 32])), &server, "pleach.example", at(2030)).unwrap_err();
    assert!(error.to_string().contains("0707"), "{error}");
}

#[test]
fn refuses_a_leaf_of_another_authority_beside_the_pinned_certificate() {
    let (ours, theirs) = (server("pleach.example"), server("pleach.example"));
    let mixed = Server { authority: ours.authority.clone(), leaf: theirs.leaf };
    assert!(verify(&PinnedAuthority::by_fingerprint(sha256(&ours.authority)), &mixed, "pleach.example", at(2030)).is_err());
}

#[test]
fn refuses_the_authority_itself_as_an_intermediate_of_nothing() {
    let server = server("pleach.example");
    let pin = PinnedAuthority::by_fingerprint(sha256(&server.leaf));
    assert!(verify(&pin, &server, "pleach.example", at(2030)).is_err());
}

#[test]
fn refuses_another_name() {
    let server = server("pleach.example");
    let error = verify(&PinnedAuthority::known(server.authority.clone()), &server, "other.example", at(2030)).unwrap_err();
    assert!(matches!(error, rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. })), "{error}");
}

#[test]
fn a_clock_that_is_behind_locks_nobody_out_but_an_expired_certificate_does() {
    let server = server("pleach.example");
    let pin = PinnedAuthority::known(server.authority.clone());
    verify(&pin, &server, "pleach.example", at(1970)).unwrap();
    assert!(verify(&pin, &server, "pleach.example", at(2032)).is_err());
}
